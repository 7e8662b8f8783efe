-- Beside the database of Feast's registry, which POSTGRES_DB names. Run once, when the volume is made.
CREATE DATABASE mlflow;
CREATE DATABASE events;
