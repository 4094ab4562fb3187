"""Words on the command line to the route: each command reads as the steps it takes."""
