"""Pictures, tables, records and folders: in and out."""
