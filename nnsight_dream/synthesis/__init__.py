"""From directions and features to prototype images."""
