"""The program ``glipv2``: a module for each of its commands, loaded when it is called."""
