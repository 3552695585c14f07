"""Names of columns that change what a row means, whatever its format: what is read, asked for, or marks a bad row."""

import re

from ual_ray.data.records import CONTEXT

# Columns that rows of any format may have: a system message and tools are used where they are, a context where it is mapped.
ALWAYS_READ = ("system", "tools", "functions")
COMMON = (*ALWAYS_READ, CONTEXT)
# A system message and tools under other names.
SYSTEMS = ("system_prompt", "system_message", "system_msg", "system_instruction", "sys_prompt", "sys", "System", "preamble")
TOOLS = ("available_tools", "tool_definitions", "function_definitions", "tools_json", "tool_schemas", "Tools")
OF_THE_REPLY = ("reasoning_content", "reasoning", "thinking", "thought")
# Columns that a question or an answer makes no sense without.
PART_OF_A_TEXT = (
    *(
        CONTEXT,
        "contexts",
        "ctx",
        "ctxs",
        "retrieved_contexts",
        "passage",
        "passages",
        "document",
        "documents",
        "article",
        "story",
    ),
    *("background", "evidence", "evidences", "knowledge", "facts", "excerpt", "snippet", "snippets", "abstract", "transcript"),
    *("source_text", "source_document", "source_documents", "code", "question_body", "db_schema", "sql_schema", "table_schema"),
    *("database_schema", "inputs"),
    *("paragraph", "paragraphs", "table", "schema", "choices", "options", "history", "input"),
    *("chat_history", "conversation_history", "dialogue_history", "previous_messages", "prefix", "suffix"),
    *("mask_history", "train_on_last", "train_on_last_turn", "only_last"),
    *(f"{kind}{rest}" for kind in ("image", "audio", "video") for rest in ("", "s", "_path", "_url", "_file")),
    # The options of a question, one column each.
    *("A", "opa", "option_a", "option_A", "optionA", "option1", "choice1", "endings", "sol1"),
    *(*SYSTEMS, *TOOLS, "chat_template_kwargs", *OF_THE_REPLY),
)
# The way to an answer, in formats without turns whose answer may be its result alone, and other responses than the one read.
OF_THE_ANSWER = (
    *("solution", "rationale", "explanation", "cot", "chain_of_thought", "response", "completion", "generated_solution"),
    *(
        f"{kind}_{what}"
        for kind in ("corrected", "edited", "revised", "improved", "refined", "rewritten")
        for what in ("output", "response", "answer", "completion", "reply", "solution")
    ),
)
# A thought under any other name, such as Complex_CoT, where it is a text of some words.
THOUGHT_NAME = re.compile(r"(?i)(?:^|[\W_])(?:cot|reasoning|thinking|thoughts?|rationales?)(?=[\W_]|$)")
SOME_WORDS = 4
# Names of the two sides of a pair in formats that are not known.
ASKED = ("instruction", "prompt", "question", "query", "problem", "input")
ANSWERED = ("output", "response", "completion", "answer", "reply", "solution")
# Columns that tell good responses from bad ones, as data for KTO and reward models have them, and what a bad one has there.
# A row of a test split is not for training either.
VERDICTS = (
    *("label", "kto_tag", "is_correct", "correct", "correctness", "desirable", "is_desirable", "split", "verified", "accepted"),
    *("is_accepted", "passed", "is_valid", "is_good", "is_safe", "success", "quality", "finish_reason", "stop_reason"),
    *("score", "reward", "verdict", "judgement", "judgment", "pass", "resolved", "solved", "status", "outcome"),
)
BAD = {
    *("test", "validation", "valid", "val", "dev", "eval", "false", "0", "-1", "no", "bad", "undesirable", "rejected"),
    *("incorrect", "wrong", "low", "poor", "length", "max_tokens", "content_filter", "error", "errored", "fail", "failed"),
    *("failure", "timeout", "timed_out", "incomplete", "cancelled", "canceled", "aborted", "crashed"),
}
# The same the other way round: a row is bad where these are true.
FAULTS = tuple(
    f"{start}{name}"
    for name in (
        "bad",
        "toxic",
        "deleted",
        "removed",
        "flagged",
        "truncated",
        "incorrect",
        "wrong",
        "rejected",
        "spam",
        "failed",
    )
    for start in ("", "is_")
)
FAULTY = ("true", "1", "yes")
# Words about what went wrong with a response, but for those of none, and a number that tells how much.
ERRORS = ("error", "errors", "error_message", "error_msg", "exception", "failure_reason")
NO_ERROR = re.compile(r"(?i)|false|none|null|no|ok|n/?a|[-+.\de]+|\[\]|\{\}")
WEIGHTS = ("weight", "loss_weight", "sample_weight", "loss")
