"""From pixels to answers: the engine, windows of scenes, blending, occlusion, previews."""
