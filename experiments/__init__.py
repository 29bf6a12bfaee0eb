"""Running configs: everything with an effect on files, clock and screen."""
