"""What a reply says: thoughts taken out, answers read in anchored forms alone."""

from __future__ import annotations

import time

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ual_ray.engines.reading import choice_probabilities
from ual_ray.engines.reply_text import (
    CUT,
    EMPTY,
    NO_THOUGHT_END,
    Unread,
    read_choice,
    read_reply,
)
from ual_ray.engines.requests import ChoiceResult, CompletionResult, Failure, count_cut
from ual_ray.engines.thoughts import THOUGHT_MARKS, opens_thought, spoken

DIGITS = tuple("0123456789")
HUNDRED = tuple(map(str, range(101)))

SEVEN = [
    "7", " 7\n", "7.", "7/9", "7 / 9", "**7**", "(7)", "[7]", "Rating: 7", "Rating (0-9): 7", "**Rating (0-9):** 7",
    "**Rating: 7/9**", "Rating: **7**.", "The rating is 7.", "My rating would be 7", "I would say 7.", "I'd rate this 7",
    "I would rate the uncertainty as 7.", "I would give it a 7.", "On a scale from 0 to 9, I would rate this response a 7.",
    "On a scale from 0 to 9, 7", "Uncertainty: 7", "uncertainty = 7", '{"uncertainty": 7}',
    '```json\n{"uncertainty": 7}\n```', "```\n7\n```", '```json\n{"rating": "7", "reason": "2 things"}\n```',
    'Here it is:\n```json\n{"score": 7}\n```', "<think>Okay 2 things</think>\n\n7", "Okay, 2 things</think>7",
    "<think>\n3\n</think>\n\nRating: 7", "[THINK]3[/THINK]7", "<seed:think>a 3</seed:think>7",
    "<|channel|>analysis<|message|>2 and 3<|end|><|start|>assistant<|channel|>final<|message|>7<|return|>",
    "analysisWe need 3.assistantfinal7", "Rating:\n7", "The response is 2 sentences long.\n\nRating: 7",
    "7\n\nThe response is vague.", "Rating: 7\n\nThe response is vague.", "Rating: 7 (likely wrong)", "7 (likely wrong)",
    "<uncertainty>7</uncertainty>", "<final_rating>7</final_rating>", "\\(7\\)", "\\[7\\]", "<strong>7</strong>",
    "<p>Rating: <strong>7</strong></p>", "---\n7\n---", "Rating: 7\n***", "Rating: 7. Of 10 facts it has 7 right.",
    "7</s>", "７", "\\boxed{7}", "$\\boxed{7}$", "<rating>7</rating>", "<answer>\n7\n</answer>", "7.0", "07",
    "Rating: 7. The response is vague.", "The response is vague. Rating: 7", "0-9: 7",
    "Rating [0-9]: 7", "Rating (from 0 to 9): 7", "1. It is vague.\n2. It is short.\n\nRating: 7", "7 out of 9",
    "The uncertainty of this response is 7", "Rating on a scale of 0 to 9: 7", '{"reasoning": "3 things", "final_rating": 7}',
    "Uncertainty rating: 7", "**Uncertainty Rating:** 7\n\n**Explanation:** The response has 2 flaws.", "◁think▷a◁/think▷7",
    "<|START_THINKING|>a<|END_THINKING|><|START_RESPONSE|>7<|END_RESPONSE|>", "I'd give this a rating of 7.",
    "Score: 7 points", 'Sure! {"rating": 7}\nHope that helps.',
    'Here is the JSON:\n```json\n{"score": "7"}\n```\nLet me know if you need more.', "- 7", "> 7", "# 7",
    "Rating: 7 (out of 9)", "**Rating:** 7 (of 9)", "I would say 7 on the 0-9 scale.", "I would rate it 7 on a 0-9 scale",
]  # fmt: skip

NO_NUMBER = [
    'Example: {"rating": 3} would be too low, so seven', '{"rating": 3}\nOn reflection, seven.',
    '{"rating": 3} is what I would have said', "<think>\nOkay, 2 things to", "<think>7", "On a scale from 0 to 9,",
    "1. The response could be", "1. The response", "Rating: 7 or 8", "7 or 8", "7-8", "7.5", "0.9", ".5", "-3", "10", "99",
    "Rating: 7 (out of 10)", "7 on a 0-10 scale", "3 (out of 9) are wrong", "I see 3 (out of 9) errors.",
    "3rd", "x7y", "COVID-9", "seven", "", "Rating (0-9):", "0-9", "Rating: 7/10", "7/10", "I see 2 options.", "2 + 2 = 4",
    "Step 1: 7", "1\n2\n3", "Confidence: 7", '{"confidence": 7}', "The correct answer is 7.", "7, because 2 is too low",
    "1. The\n2. A\n3. B", "[1, 2]", '{"rating": 7, "score": 3}', "[THINK] 7", "<|channel|>analysis<|message|>7",
    "analysisWe need to rate 7", "Not 7", "Rating: not 7", "1) The response", "Okay, the user asks for 7 and 8",
    "Rating scale: 9", "[Response]\nThere are 7", "Response: 7", "true", '{"rating": true}', '{"rating": null}',
    "Sure! 3 reasons: it is good", "Rating: 70%", "1:", "The user wants a rating from 0 (surely right) to 9", "I am 7 years",
    "It has 7 words.", "Number of errors: 7", 'An example is {"rating": 7}, but I see 2 errors.',
]  # fmt: skip


@pytest.mark.parametrize("text", SEVEN)
def test_a_number_that_is_the_answer_is_read(text: str) -> None:
    assert read_choice(text, DIGITS) == "7"


@pytest.mark.parametrize("text", NO_NUMBER)
def test_a_number_that_is_not_the_answer_is_not(text: str) -> None:
    assert isinstance(read_choice(text, DIGITS), Unread)


@pytest.mark.parametrize("text", [
    "Likelihood of being right: 7", "Likelihood that it is correct: 7", "Probability of correctness: 7", "Accuracy score: 7",
    "Quality rating: 7", "Helpfulness score: 7", "The correct answer: 7", "Expected answer: 7", "The answer should be: 7",
    "Correct value = 7", "The estimate of apples is 7", "The probability of heads is 1", "Total number: 7", "Value of x: 7",
    "Question number: 7", "Score difference: 7", "The rating cannot be 7", "The rating should never be 7",
    "I don't think the rating is 7", "It deserves no rating of 7",
    '{"correct_likelihood": 7}', '{"likelihood_of_being_correct": 7}', '{"quality_score": 7}', '{"correct_answer": 7}',
    '{"score": 7, "max_score": 10}', '{"score": 7, "out_of": 10}', '{"rating": 7, "scale": "1-10"}',
    '{"rating": 7, "score": 85}', '{"likelihood": 5, "unit": "percent"}', "See [3]", "Rating: 7 [1]",
    "Rating: 7. Wait, that is too high.", "Rating: 7, or maybe eight", "7\n\nHmm, that is too high.",
    "Rating: 7. Actually, make it five.", "Rating: 7. No, five instead.", "Rating: 7. On reflection, that is too high.",
    "Rating: 7. Sorry, that is too high.", "Rating: 7. Scratch that.", "Rating: 7. On second thought, that is too high.",
    "Rating: 7. Hold on.", "Rating: 7. I take that back.", "Example rating: 7", "Initial score: 7", '{"example_rating": 7}',
    '{"previous_score": 7}', "Likelihood of error-free: 7", "Probability that the response is free of errors: 7",
    "Probability of the response being faultless: 7", "Truth score: 7", "Reliability score: 7", "Trust score: 7",
    "Factuality score: 7", "Faithfulness rating: 7", "Clarity score: 7", '{"factuality_score": 7}', '{"error_free_score": 7}',
    "3\nInstruction: Sum it up.\nRating: 7", "3\n\nQuestion: and this?\nScore: 7", "<contemplation>Rating: 7",
    "<scratch area>\nRating: 7", "```thinking\n7", "```reasoning\nRating: 7", "<｜begin▁of▁thinking｜>7",
    "Rating: 7 - no wait, that is too high.", "Rating: 7. I reconsidered this.", "Rating: 7, rather five or six.",
])  # fmt: skip
def test_a_number_for_something_else_or_that_is_taken_back_is_not_read(text: str) -> None:
    assert isinstance(read_choice(text, DIGITS), Unread)


@pytest.mark.parametrize("text", [
    "Rating: 7. The response does not do what was asked.", "Rating: 7. The response is not right.", "7 (not certain)",
    "I think the response is mostly correct, so the uncertainty is 7.", "The response is correct, so I would rate it a 7.",
    "Likelihood of being incorrect: 7",
    "Probability of hallucination: 7", "My estimate is 7",
    '{"rating": 7, "rating_explanation": "It is wrong"}', '{"rating": 7, "score": null}', "7 (seven)",
    "Rating: 7. The answer actually matches the reference.", "Rating: 7/9. One small flaw.", "Rating: 7. It has two errors.",
    "I gave it a rating of 7",
    '{"rating (0-9)": 7}', "Rating: 7 (a large percentage of it is wrong)",
    "Rating: 7. Readers have to wait for the point.", "Rating:\n7\nRating: 7", "7\nRating: 7", "<b>Rating</b>: 7", "\ufeff7",
    "7\u200b", "7\ufe0f\u20e3", "<｜begin▁of▁thinking｜>3<｜end▁of▁thinking｜>7",
])  # fmt: skip
def test_words_around_an_answer_do_not_hide_it(text: str) -> None:
    assert read_choice(text, DIGITS) == "7"


@pytest.mark.parametrize("text", [
    "Rating (percent): 7", "Likelihood (%): 7", "Percent score: 7", "7 (percent)", "Rating: 7 (percent)", "Rating: 7, percent.",
    "Rating, out of ten: 7", "Rating (one to ten): 7", "1.0", "Likelihood: 1.0", '{"rating": 1.0}',
    "I give the highest rating: 5", "It deserves the lowest rating: 1",
    "Rating: 7\n\nRating: 7/10", "7\n\n**Rating:** 7 / 10", "Rating: 7. That is 7 out of 10.", '{"rating": 7}\nThat is 7/10.',
    "Rating: 7\n(10 = worst)", "Rating: 7\n\n10 is the worst.", "Rating: 7 (where 10 means wrong)", f"Rating: 7/{'9' * 9000}",
    '{"score_percent": 7}', '{"rating_1_to_10": 7}', '{"rating (1-10)": 7}', '{"rating_out_of_ten": 7}',
    '{"rating": 7, "of": 10}', '{"rating": 7, "total": 10}', '{"rating": 7, "highest": 10}',
])  # fmt: skip
def test_a_number_of_another_scale_is_not_read(text: str) -> None:
    assert isinstance(read_choice(text, DIGITS), Unread)


@pytest.mark.parametrize("text", [
    "A typical rating is 3", "Another rater gave a score of 3", "The user gave it a rating of 3", "The rating could be 3",
    "The highest rating is 9", "The maximum score is 9", "The rating ranges up to 9", "I refuse to give a rating of 3",
    "Rating withheld: 3", "Please provide a rating: 3", "Reference rating: 3", '{"previous_rating": 3}', '{"max_score": 9}',
    '{"rating_count": 7}', '{"num_ratings": 7}',
])  # fmt: skip
def test_a_number_that_is_not_the_models_own_rating_is_not_read(text: str) -> None:
    assert isinstance(read_choice(text, DIGITS), Unread)


@pytest.mark.parametrize(("text", "expected"), [
    ("Rating: 0.0", "0"), ('{"rating": 0.0}', "0"), ("0.0", "0"), ("I will provide a rating of 7", "7"),
    ("I'll provide a rating of 7", "7"), ("Based on the above, I would rate it 7", "7"), ("In my opinion, I rated it 7.", "7"),
    ("Rating (range 0-9): 7", "7"), ("In my final rating it is a 9.", "9"),
])  # fmt: skip
def test_a_rating_is_read_at_either_end_and_however_politely_it_is_given(text: str, expected: str) -> None:
    assert read_choice(text, DIGITS) == expected


@pytest.mark.parametrize("text", [
    # may be the answer to the instruction
    "Answer: 7", "Final answer: 7", "My final answer: 7", "The answer is 7.", '{"value": 7}', "So x = 2.\n\\boxed{7}",
    # words and numbers that may change the meaning
    "Does it deserve the highest rating: 9", "It almost deserves the maximum score: 9", "I give the highest rating: 9",
    "Rating of the translation: 7", "Required rating: 7", "Rating? 7", "Rating that I would give if it were longer: 7",
    '{"score": 7, "max_score": 9}', '{"rating": 7, "scale": "0-9"}', '{"final_answer": 18, "rating": 7}',
    '{"rating": 7, "of": 9}', '{"initial_rating": 3, "final_rating": 7}',
    # two answers
    "Rating: 7\nRating: 3", "Rating: 7. The rating is 3.", "Rating: 8\nUser: another\nRating: 3", "7\n\nFinal rating: 3",
    'Rating: 3\n{"rating": 7}\nRating: 3',
])  # fmt: skip
def test_a_reply_that_may_mean_something_else_is_not_read(text: str) -> None:
    assert isinstance(read_choice(text, DIGITS), Unread)


@pytest.mark.parametrize("text", [
    # the result of the task
    "I would say the answer is 7.", "#### 7", "4 + 3 = 7\n\n7", "4 + 3\n= 7", "The total is:\n7",
    "The final answer is:\n\n**7**", "### Final Answer\n7", "The rate is 7.",
    "```python\nscore = 7\nprint(score)\n```", "The game:\n```\nscore = 7\nrun()\n```",
    # an example, a condition, a mistake, a bound
    "Example:\nRating: 7", "Example output:\n7", "For example,\nRating: 7", "### Example\nRating: 7", 'Example: {"rating": 7}',
    'The format would be:\n```json\n{"rating": 7}\n```', "If it were longer... I would rate it 7.",
    "Some number (e.g. a rating of 7)",
    "It would be wrong to rate this 7.", "It would be a mistake to give it a 7.", "The incorrect rating is 7",
    "My rating is above 7", "The likelihood of an error is one in 7", "One would rate it 7",
    "Given a longer response, I would rate it 7.", "Considering style, I would rate it 7.",
    "I'd go to level 7", "Grade level: 7",
    # signs
    "Rating: >7", "Rating > 7", "<7", "≥7", "Rating ≠ 7", "Rating != 7", "Rating: −7", "~7", "±7", "+7", "#7", "$7", "€7", "7)",
    # two answers, a list, another scale
    '{"rating": 3}\n{"rating": 7}', 'Rating: 3\n```json\n{"rating": 7}\n```', '{"rating": 3, "rating": 7}',
    "1.\n\nThe response could be", "1)\nThe response", "I use a scale of 1 to 12.\n\nRating: 7",
])  # fmt: skip
def test_a_number_that_is_no_rating_of_this_scale_is_not_read(text: str) -> None:
    assert isinstance(read_choice(text, DIGITS), Unread)


@pytest.mark.parametrize("text", ["Rating: 7*2", 'Rating: 7"2', "Rating: 7`2"])
def test_no_number_is_made_of_two(text: str) -> None:
    assert isinstance(read_choice(text, HUNDRED), Unread)


@pytest.mark.parametrize("text", [
    "I would rate this a 7 because it is vague.", "7 due to its mistakes", "Here's my rating: 7", "My assessment: 7",
    "I'd go with 7.", "I'd say it's a 7.", "Since it is vague, I would rate it 7.",
    "Estimated likelihood: 7", "Because of its mistakes, I'd rate it about 7.", "Diversity: 7", "Sure, here is my rating: 7",
    "I believe the rating is 7.",
    "Error likelihood: 7", "### Rating\n7", "### Analysis\nIt is vague.\n\n### Rating\n\n**7**", "7。", "$7$",
    "\\[\\boxed{7}\\]",
    'Here is the rating in JSON format:\n```json\n{"rating": 7}\n```', 'It is vague.\n\n{"rating": 7}',
    "Evaluation:\nRating: 7",
])  # fmt: skip
def test_ordinary_ratings_are_read(text: str) -> None:
    assert read_choice(text, DIGITS) == "7"


@pytest.mark.parametrize(("text", "expected"), [
    ("1 percent", "1"), ("Likelihood (%): 85", "85"), ("1", "1"), ("1.0", None), ("85.0", "85"), ("100", "100"),
    ("100%", "100"), ("70/100", "70"), ("Rating (0-100): 85", "85"), ("I would say 10.", "10"), ("40", "40"),
    ("85 percent", "85"), ("101", None), ("7.5%", None), ("1000", None), ("70/10", None),
])  # fmt: skip
def test_numbers_of_several_digits_are_read_whole(text: str, expected: str | None) -> None:
    read = read_choice(text, HUNDRED)
    assert read == expected if expected else isinstance(read, Unread)


@pytest.mark.parametrize(("opening", "closing"), THOUGHT_MARKS)
def test_every_thought_is_taken_out_and_one_without_an_end_is_no_answer(opening: str, closing: str) -> None:
    assert spoken(f"{opening}\nOkay, 2 or 3.{closing}\n\n7") == "7"
    assert spoken(f"Okay, 2 or 3.\n{closing}7") == "7"  # the prompt held the opening mark
    assert spoken(f"{opening}\nOkay, 2 things to") is None
    assert read_choice(f"{opening}7", DIGITS) == NO_THOUGHT_END
    assert read_choice(f"{opening}7{closing}", DIGITS) == EMPTY
    assert opens_thought(f"<|user|>Rate it.<|assistant|>{opening}\n") and not opens_thought(f"{opening}a{closing}")


@pytest.mark.parametrize(
    ("opening", "closing"),
    [
        *[(f"<{name}>", f"</{name}>") for name in ("Think", "longcat_think", "mm:think", "antThinking", "reasoning_process")],
        *[(f"<{name}>", f"</{name}>") for name in ("analysis", "scratchpad", "inner_monologue", "chain_of_thought", "cot")],
        *[(f"[{name}]", f"[/{name}]") for name in ("THOUGHT", "reasoning")],
        *[(f"<{name}>", f"</{name}>") for name in ("internal_monologue", "reflect", "brainstorm", "deliberation")],
        *[
            ("[BEGIN THINKING]", "[END THINKING]"),
            ("<|cot|>", "<|/cot|>"),
            ('<details type="reasoning" done="true">', "</details>"),
        ],
        *[("< think >", "</ think >"), ("<think\n>", "</think>"), ("<|think_start|>", "<|think_end|>")],
        *[
            ("<|start_of_thought|>", "<|end_of_thought|>"),
            ("<|thinking|>", "<|/thinking|>"),
            ("<|reasoning|>", "<|/reasoning|>"),
        ],
    ],
)
def test_thoughts_in_marks_of_other_models(opening: str, closing: str) -> None:
    assert spoken(f"{opening}\nOkay, 2 or 3.{closing}\n\n7") == "7"
    assert read_choice(f"{opening}Rating: 5{closing}\nRating: 7", DIGITS) == "7"
    assert spoken(f"{opening}\nOkay, 2 things to") is None
    assert read_choice(f"{opening}Rating: 7", DIGITS) == NO_THOUGHT_END


def test_other_tags_are_text() -> None:
    text = "Use `<think>` and <analysis> here, <reasonable> there, <thinker> and <|im_end|>.\n<plan>"
    assert spoken(text) == text.replace("<|im_end|>", "")


@pytest.mark.parametrize(
    "reason",
    [
        *("length", "LENGTH", "max_tokens", "MAX_TOKENS", "model_length", "max_output_tokens", "max_length", "token_limit"),
        *("maxPredictedTokensReached", "contextLengthReached", "REASON_MAX_LEN", "REASON_MAX_CONTEXT", "limit", "incomplete"),
    ],
)
def test_a_reply_that_was_cut_gives_nothing(reason: str) -> None:
    assert read_reply("7", reason, DIGITS) == CUT
    assert [read_reply("7", other, DIGITS) for other in ("stop", None, "eos")] == ["7"] * 3
    counted = count_cut(pa.chunked_array([[[reason, "stop"], [None]]]))
    assert counted == (1, 3)


@pytest.mark.parametrize(
    "reason",
    [
        *("content_filter", "CONTENT_FILTERED", "SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "refusal"),
        *("abort", "cancelled", "error", "ERROR_TOXIC", "network_error", "MALFORMED_FUNCTION_CALL", "guardrail_intervened"),
        *("content_moderation", "sensitive", "insufficient_system_resource", "OTHER", "timeout", "userStopped", "pause_turn"),
        *("IMAGE_SAFETY", "UNEXPECTED_TOOL_CALL", "not_finished", "repetition", "preempt", "policy_violation", "2"),
    ],
)
def test_a_reply_that_the_model_did_not_end_gives_nothing(reason: str) -> None:
    for text in ("7", "Rating: 7", "I cannot help with that."):
        found = read_reply(text, reason, DIGITS)
        assert isinstance(found, Unread) and found.reason.startswith("unparsable:") and reason in found.reason


@pytest.mark.parametrize(
    "reason",
    [
        *("stop", "STOP", "eos", "end_turn", "stop_sequence", "COMPLETE", "tool_calls", "eos_token", "", None, "tool_use"),
        *(
            "eosFound",
            "stopStringFound",
            "<|im_end|>",
            "</s>",
            "FINISH_REASON_STOP",
            "normal",
            "null",
            "stop_words",
            "toolCalls",
        ),
    ],
)
def test_a_reply_that_the_model_ended_is_read(reason: str | None) -> None:
    assert read_reply("7", reason, DIGITS) == "7"


@given(text=st.text(st.sampled_from("0123456789.-/ ab,:\n*()Rating")), highest=st.sampled_from([5, 9, 100]))
def test_what_is_read_is_one_of_the_choices_and_in_the_text(text: str, highest: int) -> None:
    read = read_choice(text, tuple(map(str, range(1, highest + 1))))
    assert isinstance(read, Unread) or (1 <= int(read) <= highest and read in text)


@pytest.mark.parametrize(
    "text",
    [
        "rating is " * 5000,
        "1" * 50_000,
        "{" * 50_000,
        "a 7 of " * 7000,
        "I would " * 6000,
        "(" * 50_000,
        "\n" * 50_000,
        "$" * 50_000,
    ]
    + ["# " + mark * 50_000 + "7" for mark in " _#a,"]
    + ["scale " * 8000, "Example:\n" * 5000, "m - " * 12_000, "7\n" * 25_000],
)
def test_long_replies_are_read_in_time(text: str) -> None:
    started = time.monotonic()
    read_choice(text, DIGITS)
    read_choice(text, ("A", "B"))
    assert time.monotonic() - started < 2  # two readings


# --- from results to probabilities ------------------------------------------------------------------------------------


def test_probabilities_come_from_whichever_result_there_is() -> None:
    assert choice_probabilities(ChoiceResult((-1.0, -1.0), 1), ("A", "B"), 0.01) == [0.5, 0.5]
    replies = CompletionResult(("A", "B", "A good response", "A"), 1, 1, finish_reasons=("stop", "stop", "stop", "length"))
    assert choice_probabilities(replies, ("A", "B"), 0.01) == [0.5, 0.5]
    cut = CompletionResult(("A", "A", "A"), 1, 1, finish_reasons=("stop", "length", "length"))
    assert choice_probabilities(cut, ("A", "B"), 0.01) == CUT
    assert choice_probabilities(Failure("engine: away"), ("A", "B"), 0.01) == Unread("engine: away")


def test_a_small_mass_is_no_choice_and_says_so() -> None:
    read = choice_probabilities(ChoiceResult((-30.0, -33.0), 1), ("m", "M"), 0.01)
    assert isinstance(read, Unread)
    assert read.reason == "mass: the probability of all choices is 1e-13, less than min_choice_mass = 0.01"
    assert choice_probabilities(ChoiceResult((-30.0, -33.0), 1), ("m", "M"), 0.0) != read
