"""Ways to break things from outside: a library to preload, slides to draw, trees to damage."""
