"""From a reason to retrain to a candidate that the gates have measured; never to production."""
