"""The wide world's words: decisions about names that no rule can make, by looking at every name and most pictures."""


def _pairs(text: str) -> dict[str, str]:
    """A table from "text: name, text: name"."""
    return dict(" ".join(pair.split()).split(": ") for pair in text.split(","))


def _names(text: str) -> frozenset[str]:
    """The names of "name, name"."""
    return frozenset(" ".join(name.split()) for name in text.split(","))


# What a collection says of a picture, and the name for it.
RENAMED = _pairs("""
    aeroplane: airplane, ak: assault rifle, ambulans: ambulance, artichokes: artichoke, athletic shoe: sneaker,
    aubergine: eggplant, automated teller machine: cash machine, automobile: car, baby chick: chick, bactrian
    camel: camel, badminton racquet and shuttlecock: badminton racket, baguette bread: baguette, ball of yarn:
    yarn, ballet shoes: ballet shoe, bananas: banana, bar of soap: soap, basketball and hoop: basketball, beans:
    bean, bellhop bell: call bell, bento box: lunch box, beverage box: juice box, bike: bicycle, billed cap:
    baseball cap, black chess pawn: pawn, black nib: nib, black scissors: scissors, black telephone: telephone,
    blackberries: blackberry, blossom: flower, blowfish: puffer, blue book: book, blueberries: blueberry, bookcase
    shelf: bookcase, bottle with popping cork: champagne, bowl with spoon: bowl, bowling: bowling ball, bowsaw:
    saw, bride with veil: bride, building construction: crane, bunny: rabbit, burger: hamburger, busy mom with
    child and: woman, camera with flash: camera, canned food: can, carpentry saw: handsaw, cd: compact disc, cell
    phone: mobile phone, cellphone: mobile phone, cellular phone: mobile phone, cellular telephone: mobile phone,
    chains: chain, cheese wedge: cheese, cherries: cherry, chimp: chimpanzee, clapper board: clapperboard,
    classical building: temple, closed book: book, closed lock with key: padlock, closed mailbox with lowered
    flag: mailbox, cloud with lightning: cloud, clown face: clown, cocktail glass: cocktail, cone: ice cream,
    cooked rice: rice, cooking: fried egg, couch and lamp: couch, cricket bat and ball: cricket bat, crossed
    swords: sword, cucumbers: cucumber, cup with straw: soft drink, curry and rice: curry, cut of meat: steak,
    dagger knife: dagger, dark sunglasses: sunglasses, deciduous tree: tree, derelict house building: house,
    desert island: island, diya lamp: oil lamp, dove of peace: dove, dromedary camel: dromedary, drop of blood:
    drop, droplet: drop, drum with drumsticks: drum, ear of maize: corn, earth globe americas: globe, earth globe
    asia australia: globe, earth globe europe africa: globe, electric light bulb: light bulb, electric plug: plug,
    electric torch: flashlight, empty nest: nest, european castle: castle, evergreen tree: evergreen,
    extraterrestrial alien: alien, facsimile machine: fax machine, fallen leaf: leaf, field hockey stick and ball:
    hockey stick, film frames: film, firework sparkler: sparkler, fishing pole and fish: fishing rod, flying disc:
    frisbee, fork and knife: cutlery, four leaf clover: clover, frame with picture: picture frame, fried shrimp:
    shrimp, fries: french fries, front facing baby chick: chick, fuel pump: gas pump, game die: dice, gem stone:
    diamond, glass of milk: milk, gloves: glove, glowing star: star, gnu head: gnu, goat nicu: goat, graduation
    cap: mortarboard, grapes: grape, green apple: apple, green book: book, green salad: salad, hammer and pick:
    hammer, handphone: mobile phone, hatching chick: chick, headstone: gravestone, helmet with white cross:
    helmet, high heeled shoe: high heel, high speed train: train, hindu temple: temple, hippo: hippopotamus,
    hocho: knife, honey pot: honey, horizontal traffic light: traffic light, hot beverage: coffee, hourglass with
    flowing sand: hourglass, house building: house, house with garden: house, ice cream cone: ice cream, ice
    hockey stick and puck: hockey stick, icecream: ice cream, icecube: ice cube, izakaya lantern: lantern,
    japanese castle: castle, jewellery: jewelry, jigsaw puzzle piece: puzzle, kiwi: kiwifruit, kiwi fruit:
    kiwifruit, lacrosse stick and ball: lacrosse stick, lady beetle: ladybug, ladybird: ladybug, lama: llama,
    leafrake: rake, leafy green: lettuce, left pointing magnifying glass: magnifying glass, light rail: tram,
    lightbulb: light bulb, linked paperclips: paperclip, lorry: truck, lower left ballpoint pen: ballpoint, lower
    left crayon: crayon, lower left fountain pen: fountain pen, lower left paintbrush: paintbrush, luggage:
    suitcase, mans shoe: shoe, mantelpiece clock: clock, manual wheelchair: wheelchair, maple leaf: leaf, martial
    arts uniform: judo uniform, meat on bone: meat, military helmet: helmet, military medal: medal, mobile: mobile
    phone, motor bike: motorcycle, motor boat: motorboat, motorbike: motorcycle, motorized wheelchair: wheelchair,
    mountain cableway: cable car, mountain railway: train, mouse trap: mousetrap, musical keyboard: piano, nazar
    amulet: amulet, nest with eggs: nest, nesting dolls: doll, nut and bolt: bolt, old key: key, olives: olive,
    oncoming automobile: car, oncoming bus: bus, oncoming police car: police car, oncoming taxi: taxi, one piece
    swimsuit: swimsuit, open book: book, open lock: padlock, optical disc: compact disc, orange book: book,
    palmtree: palm tree, pancakes: pancake, panda face: panda, pants: trousers, passenger ship: ocean liner,
    peanuts: peanut, peas: pea, peppers: bell pepper, personal computer: laptop, phone: telephone, pie apple: pie,
    pie cherry: pie, pie pumpkin: pie, pine decoration: bamboo, plane: airplane, plums: plum, police cars
    revolving light: siren, postbox: post box, pot of food: stew, potatoes: potato, potted plant: pot plant,
    poultry leg: drumstick, probing cane: cane, public address loudspeaker: loudspeaker, pumpkin erik: pumpkin,
    pyjamas: pajamas, racing car: race car, racing motorcycle: motorcycle, recreational vehicle: suv, red apple:
    apple, rhino: rhinoceros, right pointing magnifying glass: magnifying glass, ring buoy: life buoy, ringed
    planet: planet, roasted sweet potato: sweet potato, robot face: robot, rolled up newspaper: newspaper, round
    pushpin: pushpin, roundpointshovel: shovel, running shirt with sash: tank top, sake bottle and cup: sake, salt
    shaker: saltshaker, sandals: sandal, satellite antenna: dish antenna, school satchel: backpack, shallow pan of
    food: frying pan, shoes: shoe, shopping bags: shopping bag, shopping trolley: shopping cart, ski and ski boot:
    ski, slice of pizza: pizza, slippers: slipper, small airplane: airplane, snow capped mountain: mountain,
    snowman without snow: snowman, socks: sock, soft ice cream: ice cream, softdrink: soft drink, spiral calendar
    pad: calendar, spiral note pad: notebook, spiral shell: seashell, spool of thread: spool, sportcar: sports
    car, sports medal: medal, spouting whale: whale, steaming bowl: bowl, straight ruler: ruler, studio
    microphone: microphone, stuffed flatbread: kebab, sun flower: sunflower, swimming suit: swimsuit, t rex:
    tyrannosaur, t shirt: t-shirt, table tennis paddle and ball: ping-pong paddle, teacup without handle: teacup,
    tear off calendar: calendar, teddybear: teddy bear, telephone receiver: handset, tennis racquet and ball:
    tennis racket, thong sandal: flip-flop, three button mouse: computer mouse, tie: necktie, timer clock: timer,
    tophat: top hat, tram car: tram, triangular ruler: set square, trophy cup: trophy, tropical fish: angelfish,
    tumbler glass: tumbler, tux: penguin, tv: television, umbrella on ground: parasol, umbrella with rain drops:
    umbrella, unicorn face: unicorn, vertical traffic light: traffic light, video camera: camcorder, video game:
    game controller, waning crescent moon symbol: crescent moon, water wave: wave, white medium star: star, wilted
    flower: flower, wine glass: wineglass, womans boots: boot, womans hat: hat, womans sandal: sandal, wrapped
    present: gift, yo yo: yo-yo, yoghurt: yogurt
""")

# Italian and French first words of Open Clip Art's files.
TRANSLATED = _pairs("""
    abeille: bee, acquila: eagle, aglio: garlic, albero: tree, ambulanza: ambulance, anatra: duck, antilope:
    antelope, aquila: eagle, arbre: tree, betoniera: cement mixer, biberon: baby bottle, bicicletta: bicycle,
    binocolo: binoculars, borsetta: handbag, bussola: compass, calamita: magnet, calcolatrice: calculator,
    cammello: camel, candela: candle, canguro: kangaroo, casa: house, castello: castle, cavalletta: grasshopper,
    cavallo: horse, cesto: basket, champignon: mushroom, chiave: key, cigno: swan, clessidra: hourglass,
    coccinella: ladybug, coccinelle: ladybug, coniglio: rabbit, couronne: crown, dente: tooth, dino: dinosaur,
    dinosauro: dinosaur, elefante: elephant, elefantone: elephant, farfalla: butterfly, fiore: flower, flamand:
    flamingo, formichina: ant, formicona: ant, gabbiano: seagull, gallo: rooster, gateau: cake, gattina: cat,
    gatto: cat, gufo: owl, lente: magnifying glass, leone: lion, libellula: dragonfly, libellule: dragonfly,
    lucchetto: padlock, lucertola: lizard, lucertolona: lizard, lucertolone: lizard, lumaca: snail, mante: mantis,
    mantide: mantis, microscopio: microscope, moschito: mosquito, motosega: chainsaw, mucca: cow, olifant:
    elephant, orso: bear, ours: bear, pasteque: watermelon, pecora: sheep, pecorella: sheep, pera: pear, pesca:
    peach, pescetto: fish, pinguino: penguin, pinzatrice: stapler, poltrona: armchair, ragnetto: spider, ragno:
    spider, ramarro: lizard, rana: frog, ravanello: radish, rosa: rose, scarabeo: beetle, sedia: chair, siringa:
    syringe, stambecco: ibex, stetoscopio: stethoscope, struzzo: ostrich, tacchino: turkey, teiera: teapot,
    telefono: telephone, tigre: tiger, topo: mouse, toro: bull, torta: cake, tramezzino: sandwich, trattore:
    tractor, uccello: bird, vacca: cow, valigie: suitcase, vestito: dress, zanzara: mosquito, zucca: pumpkin
""")

# Names that WordNet lacks, or ranks low what pictures show, and of what they are a kind.
ADDED = _pairs("""
    auto rickshaw: vehicle, baby bottle: bottle, badminton racket: racket, ballet shoe: shoe, beaver: rodent,
    bowling ball: ball, boxing ring: ring, bubble tea: beverage, bus stop: structure, calendar: sheet, call bell:
    bell, carousel horse: toy, cement mixer: machine, cherry blossom: flower, chick: bird, clapperboard: board,
    coin: disk, computer mouse: device, construction worker: worker, credit card: sheet, crescent moon: celestial
    body, curling stone: sports equipment, cutlery: cutlery, diving mask: mask, dolphin: toothed whale, dragon:
    reptile, fax machine: machine, fish cake: dish, fishing rod: equipment, flat shoe: shoe, flip-flop: shoe, game
    controller: device, gift: box, goal net: net, hammer: hand tool, hamsa: decoration, headphones: earphone, high
    heel: shoe, hiking boot: boot, hockey stick: stick, island: land, jack o lantern: lantern, jeans: garment,
    judo uniform: clothing, juice box: box, kebab: dish, kiwifruit: edible fruit, lacrosse stick: stick, ladybug:
    ladybug, life buoy: device, lime: citrus, lunch box: box, magic wand: stick, medal: decoration, mermaid:
    person, mirror ball: ball, mobile phone: telephone, money bag: bag, moon cake: cake, mousetrap: trap,
    nunchaku: weapon, overalls: garment, pajamas: garment, paper plane: toy, party popper: device, picture frame:
    frame, ping-pong paddle: racket, planet: celestial body, post box: box, pyramid: monument, rice ball: dish,
    rice cracker: cracker, robot: automaton, rose: shrub, rubber duck: toy, safety vest: garment, scroll: roll,
    seal: aquatic mammal, seashell: shell, selfie stick: stick, set square: drafting instrument, shopping cart:
    handcart, slug: mollusk, soccer ball: ball, swimsuit: swimsuit, takeout box: box, toy plane: toy, traffic
    light: light, treasure chest: chest, trousers: garment, unicorn: mammal, water polo: ball, wave: body, wheelie
    bin: container, wineglass: glass, world map: sheet, x ray: photograph
""")

# Words that say nothing of what the thing is, artists among them.
PASSED_OVER = frozenset(
    """
    a an angry another architetto balin benji big black blue bogdan bored brightlit brown bucul buculei cartoon
    closed color colored colorful colour coloured colourful cool costea crazy cute dan dark dave dietri dietrich
    fancy folded francesco frouke funny g gabrielle ganson gerald gerhard gerhards glossy gray green grey half
    happy huge jaime jarno jean jon jonathan jordan juliane kim krug large light linda lit little md mimooh mo
    modern my new nice nicu notlit old old-fashioned one open park pena peterm phillips pink plain profile
    purple red ripe rollan rollandin romus ron round sad shiny simple singing sleeping sliced small some
    stylised stylized the tiny toy two v vasama vasamaa very victor white whole wild yellow
    """.split()
)

# Words that say that a look is a mere outline, a sign, many things, or one part of the thing.
REJECTING = frozenset(
    """
    bitten blueprint bw clef contour core dead diagram driving emblem eyed face faces five flag footprints four
    head heads hole icon inside interior keys knot labels logo map mateya mr mute no nomoon nose note notes
    outline pattern paw pieces pinout playing portrait print prints reader rules sailing set sign silhouet
    silhouette silhouettes silouette simbol six sketch slice symbol symbols tamerlane tatoo tattoo theory three
    tracks two under unmount wedge winged worm
    """.split()
)

# Words that no name in a caption has: such a caption says more than a name.
CONNECTING = frozenset("a an and at for in is of on the to used with".split())

# Names that are words but no fair names for what the collections show under them.
EXCLUDED = _names("""
    abstraction, adult, amount, animal, antique, art, artwork, back, bad, bad guy, baggage claim, bang, bank,
    base, bath, beach, belly, big, bill, blazer, blue, board, body, bottom, bow, braces, brand, break, brother,
    buddy, bull's-eye, burner, bus lane, bust, busts, button, camper, capital, card, card index, cast, center,
    character, chart, cheek, chip, circle, circus, city, cityscape, cleaner, club, coach, collection, color,
    column, corner, couple, cover, cow's, cross, crossroads, cultivator, cuppa, cut, dash, data, deaf, deaf
    person, deck, design, desktop, device, die, direct, display, don, donna, double, drawbridge, drawing, drill,
    duplicate, dvd, earth, eight, einstein, eleven, end, enthusiast, europe, evening, exit, face, family, fan,
    farm, fat, feast, female, figure, firewall, fishery, five, flag, flat, float, floppy, food, form, fortress,
    four, free, friend, front, fruit, future, game, generation, generic, gps, gray, green, ground, group, hair,
    haircut, handlebar, hash, head, heat, heel, hole, home, hub, human, hummer, ice, icon, image, item, jack,
    javelin, jay, jazz, jewel, judge, kernel, kid, king, kiss, knee, knitting, label, lad, lady, land, landscape,
    lcd, lead, letter, level, light, line, link, love, lunch, machine, magic, magic stones, male, map, mark, mast,
    match, mates, meal, medium, memo, menu, message, metro, milky way, mine, mix, model, mole, money, monitor,
    motorway, music, nail, nature, neck, new, night, nine, note, notice, number, object, office, one, organ,
    outfit, page, paint, painting, pair, panel, paper, part, party, patch, patchwork, pavement, pda, pedal,
    pedestrian crossing, people, person, picnic, piece, pili nut tree, pink, place, place of worship, plan, plant,
    platform, play, pocket, point, police, pool, pope, port, portrait, position, post, power, president, prince,
    princess, print, product, profile, projectile, public, pupil, purple heart, purple pigface flower, queen,
    question, race, ray, rebel, record, red, reed, reptile, resistor, restaurant, restroom, ride, rilievo, roast,
    roller, round tower, roundabout, route, rubber, rugby goal posts, rule, sail, sash, scene, school, school
    crossing, score, screen, set, seven, shoelace, shop, shutter, sign, signal, signore, signorina, silver,
    sister, six, skin, skull and crossbones, sleeping accommodation, sleeve, slice, smock, snow, sole, son, sound,
    space, spice, spinning, sport, spread, spring, sprinkle, square, square tower, stack, stage, stamp, state,
    station, step, stick, store, street, stripper, structure, student, style, suit, sun, surface, symbol, system,
    table, tablet, teeth, ten, thing, three, tie, time, tool, top, touch, toy, tract, trade, train sign, triangle,
    tribe, trophy cup, tunnel, tux airways, twelve, two, uniform, user, vegetable, vehicle, vet, video, view,
    virus, walk, wall, walnut sailboat, water, water closet, well, white, white flag, wife, wind, wing, winner,
    word, work, worker, world, worm, wrap, zero, zip, zone
""")

# Things that are not counted: "some rice".
UNCOUNTED = _names("""
    asparagus, bacon, bamboo, beef, beer, bread, broccoli, bubble tea, butter, cabbage, candy, celery,
    champagne, cheese, chocolate, coffee, coral, corn, curry, cutlery, flour, fudge, garlic, grass, ham, hay,
    honey, ice cream, jam, jewelry, juice, lava, lemonade, lettuce, luggage, meat, milk, money, pasta, popcorn,
    rice, sake, salad, salami, sand, sausage, soap, soft drink, soup, spaghetti, spinach, stew, sugar, sushi,
    tea, toast, tofu, toilet paper, wine, wood, yarn, yogurt
""")

# By the last word of a name, where no rule gives the plural.
PLURALS = _pairs("""
    calf: calves, child: children, dwarf: dwarves, elf: elves, fisherman: fishermen, foot: feet, goose: geese,
    guardsman: guardsmen, hero: heroes, knife: knives, leaf: leaves, man: men, mango: mangoes, mosquito: mosquitoes,
    ox: oxen, potato: potatoes, scarf: scarves, shelf: shelves, snowman: snowmen, tomato: tomatoes, tooth: teeth,
    volcano: volcanoes, wolf: wolves, woman: women
""")
