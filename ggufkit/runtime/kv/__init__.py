"""What a model remembers of a conversation: the types that keys and values are kept in, and the cache."""
