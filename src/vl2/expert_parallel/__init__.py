"""Answer on several devices: the ranks divide the routed experts of every layer, and the first rank runs the rest."""
