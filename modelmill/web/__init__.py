"""Read-only pages over the database of records and the folders of builds: see `app.create`."""
