"""How a loop stands and what came of it: read from its folder, while it runs or afterwards."""
