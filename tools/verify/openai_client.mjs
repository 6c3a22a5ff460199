// OpenAI's library for Node against a server: node openai_client.mjs http://127.0.0.1:8080/v1 MODEL
import assert from "node:assert/strict";
import OpenAI from "openai";

const [baseURL, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "def main(" }];

const whole = await client.chat.completions.create({ model, messages, max_tokens: 8, temperature: 0 });
let text = "";
let usage;
const asked = { model, messages, max_tokens: 8, temperature: 0, stream: true, stream_options: { include_usage: true } };
for await (const chunk of await client.chat.completions.create(asked)) {
  text += chunk.choices[0]?.delta.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.equal(text, whole.choices[0].message.content);
assert.equal(usage.completion_tokens, 8);

const parameters = { type: "object", properties: { at: { enum: ["sky", "sea"] } }, required: ["at"] };
const tools = [{ type: "function", function: { name: "look", description: "Look.", parameters } }];
const choice = { tool_choice: "required", parallel_tool_calls: false, max_tokens: 200 };
const called = await client.chat.completions.create({ model, messages, tools, ...choice });
const call = called.choices[0].message.tool_calls[0];
assert.ok(["sky", "sea"].includes(JSON.parse(call.function.arguments).at));
const result = { role: "tool", tool_call_id: call.id, content: "blue" };
await client.chat.completions.create({ model, messages: [...messages, called.choices[0].message, result], tools, max_tokens: 4 });

const schema = { type: "object", properties: { n: { type: "integer", minimum: 0, maximum: 9 } }, required: ["n"], additionalProperties: false };
const format = { type: "json_schema", json_schema: { name: "number", schema } };
const made = await client.chat.completions.create({ model, messages, response_format: format, max_tokens: 100 });
assert.ok(JSON.parse(made.choices[0].message.content).n >= 0);

const vectors = await client.embeddings.create({ model, input: ["a", "b"] });
assert.equal(vectors.data.length, 2);
const answer = await client.responses.create({ model, input: "def main(", max_output_tokens: 8, temperature: 0 });
assert.equal(answer.usage.output_tokens, 8);
let streamed = "";
for await (const event of await client.responses.create({ model, input: "def main(", max_output_tokens: 8, temperature: 0, stream: true }))
  if (event.type === "response.output_text.delta") streamed += event.delta;
assert.equal(streamed, answer.output_text);
assert.deepEqual((await client.models.list()).data.map((one) => one.id), [model]);
await assert.rejects(client.chat.completions.create({ model, messages: [{ role: "user", content: "x ".repeat(40000) }] }), {
  code: "context_length_exceeded",
});
console.log("chat, stream, tools, structured output, embeddings, responses, models, errors: all as they should be");
