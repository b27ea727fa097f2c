"""Tables, figures and pages of a store."""
