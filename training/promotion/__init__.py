"""From a trained model file to the one that serves: registered, measured by gates, promoted, rolled back."""
