// The checks of OpenAI's client for JavaScript; protocol.py describes the protocol.

import fs from "node:fs";
import readline from "node:readline";
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const REQUESTS = JSON.parse(fs.readFileSync(new URL("requests.json", import.meta.url)));
const NAMED = { type: "function", function: { name: "get_weather" } };
const Reply = z.object({
  kind: z.enum(["metric", "setting", "technique"]),
  certain: z.boolean(),
  note: z.string().max(20),
});

const client = (target, options = {}) =>
  new OpenAI({
    baseURL: target.base_url,
    apiKey: target.api_key,
    maxRetries: 0,
    timeout: 60_000,
    ...options,
  });

const request = (target, fields = {}) => ({
  model: target.model,
  messages: REQUESTS.messages,
  max_tokens: REQUESTS.max_tokens,
  temperature: 0,
  ...fields,
});

const response = (target) => ({
  model: target.model,
  input: REQUESTS.question,
  max_output_tokens: REQUESTS.max_tokens,
  temperature: 0,
});

const usage = ({ prompt_tokens, completion_tokens }) => ({ prompt_tokens, completion_tokens });

const responseUsage = ({ input_tokens, output_tokens }) =>
  usage({ prompt_tokens: input_tokens, completion_tokens: output_tokens });

const answer = (completion) => ({
  text: completion.choices[0].message?.content ?? completion.choices[0].text,
  finish: completion.choices[0].finish_reason,
  usage: usage(completion.usage),
});

const calls = (completion) => ({
  calls: (completion.choices[0].message.tool_calls ?? []).map((call) => [
    call.function.name,
    call.function.arguments,
  ]),
  text: completion.choices[0].message.content,
});

const create = (target, fields, options) =>
  client(target, options).chat.completions.create(request(target, fields));

const tool = (tool_choice) => async (target) =>
  calls(await create(target, { tools: REQUESTS.tools, tool_choice }));

const CHECKS = {
  models: async (target) => {
    const models = [];
    for await (const model of client(target).models.list()) models.push(model.id);
    return { models, one: (await client(target).models.retrieve(target.model)).id };
  },
  chat: async (target) => answer(await create(target)),
  completions: async (target) =>
    answer(
      await client(target).completions.create({
        model: target.model,
        prompt: REQUESTS.prompt,
        max_tokens: 8,
        temperature: 0,
      }),
    ),
  stream: async (target) => {
    const chunks = [];
    const fields = { stream: true, stream_options: { include_usage: true } };
    for await (const chunk of await create(target, fields)) chunks.push(chunk);
    const choices = chunks.filter((chunk) => chunk.choices.length).map((chunk) => chunk.choices[0]);
    const texts = choices.map((choice) => choice.delta.content).filter(Boolean);
    return {
      text: texts.join(""),
      chunks: texts.length,
      finish: choices.at(-1).finish_reason,
      usage: usage(chunks.at(-1).usage),
    };
  },
  concurrent: async (target) => ({
    answers: (await Promise.all([0, 1, 2].map(() => create(target)))).map(answer),
  }),
  abort: async (target) => {
    const fields = { stream: true, max_tokens: REQUESTS.long_tokens, ignore_eos: true };
    const chunks = await create(target, fields);
    let read = 0;
    for await (const _ of chunks) if (++read === 5) break;
    chunks.controller.abort();
    return { chunks: read };
  },
  "structured output": async (target) => {
    const fields = { response_format: zodResponseFormat(Reply, "reply"), max_tokens: 200 };
    const completion = await client(target).chat.completions.parse(request(target, fields));
    return { parsed: completion.choices[0].message.parsed };
  },
  "JSON mode": async (target) =>
    answer(await create(target, REQUESTS.json_mode)),
  "tool named": tool(NAMED),
  "tool required": tool("required"),
  "tool auto": tool("auto"),
  "tool stream": async (target) => {
    const fields = { tools: REQUESTS.tools, tool_choice: NAMED };
    const stream = client(target).chat.completions.stream(request(target, fields));
    return calls(await stream.finalChatCompletion());
  },
  "tool result": async (target) =>
    answer(await create(target, { messages: REQUESTS.tool_messages, tools: REQUESTS.tools })),
  embeddings: async (target) => ({
    vectors: (await client(target).embeddings.create({ model: target.model, input: "a" })).data
      .length,
  }),
  responses: async (target) => {
    const final = await client(target).responses.create(response(target));
    return { text: final.output_text, finish: final.status, usage: responseUsage(final.usage) };
  },
  "responses stream": async (target) => {
    const stream = client(target).responses.stream(response(target));
    const deltas = [];
    for await (const event of stream)
      if (event.type === "response.output_text.delta") deltas.push(event.delta);
    const final = await stream.finalResponse();
    return {
      text: deltas.join(""),
      chunks: deltas.length,
      finish: final.status,
      usage: responseUsage(final.usage),
    };
  },
  "wrong key": async (target) =>
    answer(await create(target, {}, { apiKey: "sk-wrong-wrong-wrong-wrong" })),
  "wrong model": async (target) => answer(await create(target, { model: "no-such-model" })),
  "wrong value": async (target) => answer(await create(target, { temperature: -1 })),
  full: async (target) => answer(await create(target)),
  retry: async (target) => answer(await create(target, {}, { maxRetries: 8 })),
};

const classes = (error) => {
  const names = [];
  for (let kind = error?.constructor; kind?.name; kind = Object.getPrototypeOf(kind))
    names.push(kind.name);
  return names;
};

const describe = (error) => ({
  classes: classes(error),
  status: error.status ?? null,
  code: error.code ?? null,
  message: String(error.message).slice(0, 2000),
  retry_after: error.headers?.get?.("retry-after") ?? null,
});

const { version } = JSON.parse(
  fs.readFileSync(new URL("node_modules/openai/package.json", import.meta.url)),
);
console.log(JSON.stringify({ version }));
for await (const line of readline.createInterface({ input: process.stdin })) {
  const { check, target } = JSON.parse(line);
  const observed = await CHECKS[check](target).catch((error) => ({ error: describe(error) }));
  console.log(JSON.stringify(observed));
}
