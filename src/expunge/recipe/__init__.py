"""The recipe that makes the testbed: artwork, scenes, captions, and five small networks trained on them."""
