from glipv2_d2.program import main as program_main


def test_the_demo_is_a_door_to_the_command_predict(load_tool, monkeypatch):
    asked = []
    demo = load_tool("demo")
    monkeypatch.setattr(demo, "run_command", lambda *words: asked.append(words))
    demo.main(["a.jpg", "--names", "dog"])
    assert asked == [("predict", ["a.jpg", "--names", "dog"], "python tools/demo.py")]
    assert "predict" in program_main.COMMANDS
