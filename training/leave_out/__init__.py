"""What a model makes of classes that it never saw: the recipe is trained without them, and its scores meet them."""
