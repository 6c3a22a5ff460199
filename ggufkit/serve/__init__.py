"""The server: models behind HTTP, in the languages that clients speak.

    body ── dialects/ ──► asks ──► engine/ ──► answers ──► replies/ ──► dialects/ ──► frames
            OpenAI's,     prompt,  tokens,     of several  thoughts,
            Anthropic's,  sampler, batched     at once     text, calls
            ollama's …    grammar

`engine/` knows nothing of HTTP. `server` listens, `app` has the routes, `security` stands before them all.
"""
