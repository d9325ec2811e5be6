"""The words of the APIs' JSON that carry no text of a client: fields, keywords, tags and values."""

from __future__ import annotations


def names(text: str) -> frozenset[str]:
    """Return the words of a text."""
    return frozenset(text.split())


LEAKING_ARGUMENTS = (
    "logprobs",
    "prompt_logprobs",
    "logprob_token_ids",
    "return_token_ids",
    "return_tokens_as_token_ids",
    "return_token_offsets",
    "return_prompt_text",
    "return_assistant_tokens_mask",
    "echo",
    "enable_response_messages",
)
"""Arguments that repeat the answer's or prompt's text where the guardrail does not check it."""

OPAQUE_FIELDS = names(
    "prompt_embeds chat_template previous_response_id context_management container mcp_servers "
    "tokens conversation audio mm_processor_kwargs media_io_kwargs"
)
"""Fields whose content no guardrail reads: serialized objects, programs, references."""

CONVERSATION_FIELDS = (
    "system",
    "instructions",
    "instruction",
    "query",
    "queries",
    "text_1",
    "data_1",
    "text_2",
    "data_2",
    "items",
    "documents",
    "prompt",
    "suffix",
    "input",
    "messages",
)
"""Fields with what the model reads as messages, prompts or inputs, the last one last."""

SCHEMA_FIELDS = names(
    "response_format structured_outputs text output_config tool_choice functions function_call "
    "guided_json guided_regex guided_choice guided_grammar stop stop_sequences bad_words"
)
"""Fields that say exactly what the answer looks like, or where it ends."""

FREE_TEXT_FIELDS = names(
    "documents chat_template_kwargs metadata user safety_identifier prediction"
)
"""Further fields whose texts may be replaced."""

NUMERIC_FIELDS = names(
    """
    frequency_penalty presence_penalty repetition_penalty length_penalty temperature top_p top_k
    min_p n best_of seed max_tokens max_completion_tokens max_output_tokens min_tokens
    max_tool_calls stream store background use_beam_search stop_token_ids allowed_token_ids
    logprob_token_ids logit_bias logprobs top_logprobs prompt_logprobs include_stop_str_in_output
    ignore_eos skip_special_tokens spaces_between_special_tokens truncate_prompt_tokens
    add_special_tokens add_generation_prompt continue_final_message echo include_reasoning
    parallel_tool_calls thinking_token_budget priority return_token_ids return_token_strs
    return_tokens_as_token_ids return_token_offsets return_prompt_text dimensions top_n
    return_assistant_tokens_mask enable_response_messages stream_interval max_tokens_per_query
    max_tokens_per_doc normalize use_activation activation routed_experts_prompt_start
    """
)
"""Fields that are numbers or booleans; anything else in them is checked as text."""

ROLES = names("system developer user assistant tool function")

PART_TYPES = names(
    "text input_text output_text refusal thinking reasoning_text summary_text tool_use tool_result "
    "tool_reference"
)
"""Types of content parts that are text."""

ITEM_TYPES = names(
    "function_call function_call_output custom_tool_call custom_tool_call_output reasoning"
)
"""Types of the Responses API's input items that are text, besides messages."""

TOOL_TYPES = names("function custom namespace")
"""Types of tools that only the client runs; a server's tool would fetch text past the guardrail."""

MEDIA_KEYS = names(
    """
    image_url image_pil image_embeds image audio_embeds audio_url input_audio audio video_embeds
    video_url video input_image prompt_embeds file file_id file_data file_url source data
    encrypted_content
    """
)
"""Keys of content parts whose value is not text."""

_UNREADABLE_TYPES = names(
    """
    image image_url input_image image_pil image_embeds audio input_audio audio_url audio_embeds
    video video_url input_video video_embeds file input_file document search_result
    redacted_thinking prompt_embeds item_reference compaction computer_call computer_call_output
    file_search_call web_search_call code_interpreter_call local_shell_call local_shell_call_output
    image_generation_call mcp_call mcp_list_tools mcp_approval_request mcp_approval_response mcp
    file_search web_search web_search_preview code_interpreter image_generation local_shell
    computer_use_preview server_tool_use web_search_tool_result mcp_tool_use mcp_tool_result
    """
)

_SCHEMA_WORDS = names(
    """
    $schema $id $ref $defs $comment $anchor type properties required items enum const default
    examples example description title format pattern additionalProperties patternProperties
    propertyNames unevaluatedProperties unevaluatedItems prefixItems contains minContains
    maxContains minItems maxItems uniqueItems minLength maxLength minimum maximum exclusiveMinimum
    exclusiveMaximum multipleOf minProperties maxProperties dependentRequired dependentSchemas
    allOf anyOf oneOf not if then else definitions nullable readOnly writeOnly deprecated
    contentEncoding contentMediaType object array string number integer boolean null true false
    date-time date time email uri uuid hostname ipv4 ipv6 regex
    """
)

_VALUES = names(
    """
    auto none required any tool low medium high minimal xhigh max default flex scale priority
    json json_object json_schema text grammar choice structural_tag lark gbnf ebnf float base64
    completed in_progress incomplete failed queued disabled enabled left right ephemeral concise
    detailed max_length do_not_pad allowed_tools
    """
)

_KEYS = names(
    """
    model role content name id call_id tool_call_id tool_use_id tool_calls function function_call
    arguments parameters input_schema input output summary status tools tool_choice strict schema
    json_schema response_format structured_outputs guided_json guided_regex guided_choice
    guided_grammar regex grammar choice json json_object structural_tag structures triggers begin
    end whitespace_pattern disable_any_whitespace disable_fallback disable_additional_properties
    stop stop_sequences bad_words stream_options include_usage continuous_usage_stats
    include_obfuscation metadata user user_id documents chat_template_kwargs enable_thinking
    thinking_budget reasoning effort generate_summary reasoning_effort verbosity text url
    refusal thinking reasoning_content signature is_error cache_control ttl annotations logprobs
    phase tool_name namespace custom defer_loading disable_parallel_tool_use mode
    service_tier truncation include cache_salt prompt_cache_key safety_identifier request_id
    session_id encoding_format prompt_cache_retention previous_input_messages padding
    truncation_side kv_transfer_params ec_transfer_params vllm_xargs output_config
    repetition_detection max_pattern_size min_pattern_size min_count embed_dtype endianness
    """
)

WORDS = (
    _SCHEMA_WORDS
    | _VALUES
    | _KEYS
    | ROLES
    | PART_TYPES
    | ITEM_TYPES
    | TOOL_TYPES
    | MEDIA_KEYS
    | _UNREADABLE_TYPES
    | NUMERIC_FIELDS
    | SCHEMA_FIELDS
    | FREE_TEXT_FIELDS
    | OPAQUE_FIELDS
    | frozenset(LEAKING_ARGUMENTS)
    | frozenset(CONVERSATION_FIELDS)
)
"""Keys and values that are part of an API. They say nothing about a client, wherever they are."""
