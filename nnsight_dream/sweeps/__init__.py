"""Many prototypes in a folder that is whole at every moment."""
