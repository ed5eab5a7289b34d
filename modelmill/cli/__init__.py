"""The commands: one file each, found by its name; its PLUGIN is a click command."""
