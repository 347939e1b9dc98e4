"""Data: sources of documents, tokenizers, the token store, and the batches made from it."""
