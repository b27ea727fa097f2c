"""Who says what a picture shows, and how often they are right."""
