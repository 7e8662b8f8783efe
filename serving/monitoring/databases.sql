-- Beside the database of Feast's registry, which POSTGRES_DB names: MLflow's. Run once, when the volume is made.
CREATE DATABASE mlflow;
