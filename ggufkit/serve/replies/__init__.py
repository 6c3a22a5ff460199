"""What a model writes, taken apart as it comes: thoughts, text and calls of tools.

    <think>Let me see</think>It rains. <tool_call>{"name": "look", "arguments": {"at": "sky"}}</tool_call>
           └── Thought ─┘        └ Said ┘            └ CallBegins ┘             └── CallText ─┘

Each family of models writes calls in its own way: `styles` is the table of them, one layout a row. From a row come the
incremental parser (`parser`, with the parts of calls in `slots`) and the grammar that makes a model write a call
(`forced`). `detect` finds out which row a chat template writes. `harmony`, `muse` and `functionary` read what is
no row.
"""
