"""The model registry: gates, promotion, rollback, retraining."""
