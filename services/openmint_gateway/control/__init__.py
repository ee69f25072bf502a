"""The control API under /v1: one router per noun, problem+json for errors, cursor pages for lists."""
