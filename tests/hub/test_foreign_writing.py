"""Published models write through the one decode loop: as LLaDA's own script, alone as in a batch, within the budget."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import tokenizers as hf
import torch

import manta
from manta.cli import main
from manta.errors import RequestError, UsageError
from manta.families.events import GenerateOptions, Request, finished
from manta.hub import ForeignModel, llada, load_foreign
from manta.hub.foreign.chat import ChatFrame, find_frame
from manta.hub.foreign.denoisers import RowDenoiser, SpanOfRow
from manta.masked import DECODERS
from manta.text.foreign import ForeignTokenizer

from .published import write

KINDS = ["llada", "Dream", "mdlm"]
MASK = 53
OF_ANY_MODEL = [kind for kind in DECODERS if kind not in ("doubt", "learned")]  # which a model has to have learned


def write_tokenizer(folder: Path, turns: tuple[str, str] = ("<|a|>", "<|b|>")) -> None:
    """A word a token: w0 … w44 and the names of roles, then special tokens, the ends and starts of turns among them."""
    words = [f"w{i}" for i in range(45)] + ["user", "assistant", "system", "Be", "good"]
    backend = hf.Tokenizer(hf.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="w0"))
    backend.pre_tokenizer = hf.pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    specials = [turns[0], "<|end|>", turns[1], "<|mask|>", "<|begin|>", "<|end_header_id|>"]
    backend.add_special_tokens([hf.AddedToken(name, normalized=False) for name in specials])
    backend.save(str(folder / "tokenizer.json"))


def make(folder: Path, kind: str) -> ForeignModel:
    write(folder, kind, mask_token_id=MASK)
    write_tokenizer(folder)
    return load_foreign(folder, "cpu", dtype=torch.float32)


@pytest.fixture(scope="module", params=KINDS)
def model(request, tmp_path_factory) -> ForeignModel:
    return make(tmp_path_factory.mktemp("model"), request.param)


@pytest.fixture(scope="module")
def endless(model) -> ForeignModel:
    return replace(model, eos_id=None)


def tokens_of(model, requests, batch_size=64, **options) -> dict[int, tuple[int, ...]]:
    how = GenerateOptions(**{"max_tokens": 8, "num_steps": 99, **options})
    events = model.generate(requests, how, batch_size=batch_size)
    return {event.index: event.tokens for event in events if event.kind == "done"}


def single(model, prompt: str | None = "w1 w2 w3", **options) -> list[int]:
    return list(tokens_of(model, [Request(prompt=prompt)], **options)[0])


@pytest.mark.parametrize(("steps", "block"), [(8, 8), (4, 8), (3, 8), (1, 8), (8, 4), (4, 4), (2, 4), (8, 1)])
def test_confidence_is_lladas_own_sampler(endless, steps, block):
    prompts = torch.tensor([[1, 2, 3], [9, 30, 4]])
    expected = llada.generate(endless, prompts, None, steps, 8, block, mask_id=MASK)[:, 3:]
    requests = [Request(prompt=" ".join(f"w{i}" for i in row)) for row in prompts.tolist()]
    options = {"decoder": "confidence", "block_length": block, "num_steps": steps}
    assert list(tokens_of(endless, requests, **options).values()) == [tuple(row) for row in expected.tolist()]


@pytest.mark.parametrize("decoder", OF_ANY_MODEL)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_text_is_the_same_alone_and_in_any_batch(model, decoder, temperature):
    prompts = ["w1 w2 w3", "w7", None, "w9 w8 w7 w6 w5 w4 w3 w2 w1 w10 w11 " * 5]  # the last leaves less room
    requests = [Request(prompt=p, seed=10 + i) for i, p in enumerate(prompts)]
    requests.append(Request(prompt="w4", infill="w1 ___{2} w2 ___{3}", seed=3))
    options = {"decoder": decoder, "temperature": temperature, "num_steps": 7, "max_tokens": 12}
    together = tokens_of(model, requests, **options)
    assert [len(together[i]) for i in range(5)] == [12, 12, 12, 9, 7]
    assert together == tokens_of(model, requests, batch_size=2, **options)
    assert together == {i: tokens_of(model, [request], **options)[0] for i, request in enumerate(requests)}
    if temperature:
        assert len({single(model, temperature=1.0, decoder=decoder)[0], *single(model, decoder=decoder)}) > 1


@pytest.mark.parametrize("decoder", OF_ANY_MODEL)
@pytest.mark.parametrize("budget", [1, 3, 20])
def test_the_budget_is_kept_and_every_word_is_written(model, decoder, budget):
    options = GenerateOptions(decoder=decoder, num_steps=budget, max_tokens=10)
    *drafts, done = model.generate([Request(prompt="w1 w2")], options)
    assert done.nfe == len(drafts) <= budget
    assert len(done.tokens) == 10 and MASK not in done.tokens
    assert done.processed == 10 * done.nfe


def test_decoders_that_a_model_has_to_have_learned_are_refused(model):
    with pytest.raises(UsageError, match="has learned no schedule"):
        tokens_of(model, [Request(prompt="w1")], decoder="learned")
    with pytest.raises(UsageError, match=r"no head for it; train a\smasked model"):
        tokens_of(model, [Request(prompt="w1")], decoder="doubt")


def test_deferred_looks_further_than_blocks_and_meets_them_at_the_ends(endless):
    """A window of one word and a block of one word go from left to right; a window over all is no window."""
    leftmost = single(endless, decoder="deferred", window_masked=1)
    assert leftmost == single(endless, decoder="block", block_length=1, threshold=0.0)
    expected, row = [], [1, 2, 3] + [MASK] * 8
    for place in range(3, 11):
        row[place] = int(endless(torch.tensor([row]))[0, place].argmax())
        expected.append(row[place])
    assert leftmost == expected
    for threshold in (0.05, 0.2, 0.9):
        wide = single(endless, decoder="deferred", window_masked=8, window_width=8, threshold=threshold)
        assert wide == single(endless, decoder="threshold", threshold=threshold)


@pytest.mark.parametrize("decoder", ["deferred", "block"])
def test_what_is_committed_stays_and_the_window_holds(endless, decoder):
    options = {"decoder": decoder, "threshold": 0.1, "num_steps": 99, "max_tokens": 12}
    options |= {"window_masked": 3, "window_width": 5} if decoder == "deferred" else {"block_length": 4}
    before = (MASK,) * 12
    for event in endless.generate([Request(prompt="w5 w6")], GenerateOptions(**options)):
        new = [i for i in range(12) if before[i] == MASK and event.tokens[i] != MASK]
        assert all(a in (b, MASK) for a, b in zip(before, event.tokens, strict=True))
        if event.kind == "draft":
            first = before.index(MASK)
            reach = first + 5 if decoder == "deferred" else first // 4 * 4 + 4
            assert new and max(new) < reach
            assert sum(before[i] == MASK for i in range(first, max(new) + 1)) <= (3 if decoder == "deferred" else 4)
        before = event.tokens


def test_an_end_ends_the_text(endless):
    options = {"decoder": "deferred", "window_masked": 1, "temperature": 1.0}
    plain = single(endless, **options)
    place = next(i for i in range(2, 8) if plain[i] not in plain[:i])
    model = replace(endless, eos_id=plain[place])
    request = Request(prompt="w1 w2 w3")
    *_, done = model.generate([request], GenerateOptions(num_steps=99, max_tokens=8, **options))
    assert list(done.tokens) == plain[:place] + [plain[place]] * (8 - place)
    assert done.nfe == place + 1
    assert model.tokenizer is not None
    assert done.text == model.tokenizer.decode(plain[:place])


def test_given_words_stay_and_ends_in_blanks_vanish(endless):
    template = "w1 ___{2} w2 w3 ___{3}"
    *_, done = endless.generate([Request(infill=template)], GenerateOptions(num_steps=9))
    assert len(done.tokens) == 8 and [done.tokens[i] for i in (0, 3, 4)] == [1, 2, 3] and MASK not in done.tokens
    model = replace(endless, eos_id=done.tokens[1])
    *_, again = model.generate([Request(infill=template)], GenerateOptions(num_steps=9))
    assert again.tokens == done.tokens
    assert model.tokenizer is not None
    words = model.tokenizer.decode([token for token in done.tokens if token != model.eos_id])
    assert again.text.split() == words.split()
    assert again.text.startswith("w1 ") and " w2 w3 " in again.text, "spaces around blanks are given, too"


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("prompt", [[], [4, 9, 2]])
def test_a_span_equals_the_row_and_reads_the_others_as_they_were(tmp_path, shifted, prompt):
    model = replace(make(tmp_path, "llada"), shifted=shifted)
    tokens = torch.randint(0, 50, (1, 9), generator=torch.Generator().manual_seed(0))
    whole = RowDenoiser(model.logits, [prompt], torch.ones(1, 9).bool())
    part = SpanOfRow(model.net, prompt, shifted=shifted, device=model.device)  # pyright: ignore[reportArgumentType]
    words = torch.arange(56) != MASK
    with torch.no_grad():
        before = whole(tokens, 0, 9)
        torch.testing.assert_close(part(tokens, 0, 9)[..., words], before[..., words])
        for start, stop in ((2, 6), (0, 3), (7, 9)):
            torch.testing.assert_close(part(tokens, start, stop)[..., words], before[:, start:stop, words])
        changed = tokens.clone()
        changed[0, 8] = 7
        torch.testing.assert_close(part(changed, 2, 6)[..., words], before[:, 2:6, words])
        assert not torch.allclose(whole(changed, 2, 6)[..., words], before[:, 2:6, words], atol=1e-3)


@pytest.mark.parametrize("cache", ["prefix", "dual"])
@pytest.mark.parametrize("kind", ["llada", "Dream"])
def test_a_cache_that_is_refreshed_every_call_changes_nothing(tmp_path, kind, cache):
    model = make(tmp_path, kind)
    requests = [Request(prompt="w1 w2"), Request(prompt="w3"), Request()]
    options = {"decoder": "deferred", "window_masked": 3, "window_width": 6, "max_tokens": 16}
    plain = tokens_of(model, requests, **options)
    assert plain == tokens_of(model, requests, cache=cache, refresh=0, **options)
    cached = list(model.generate(requests, GenerateOptions(num_steps=99, cache=cache, refresh=99, **options)))
    assert all(MASK not in event.tokens for event in cached if event.kind == "done")
    assert all(event.processed < 16 * event.nfe for event in cached if event.kind == "done")


def test_what_cannot_be_is_said_so(tmp_path):
    model = make(tmp_path / "mdlm", "mdlm")
    for request, options, error, words in [
        (Request(prompt="w1"), {"cache": "dual"}, UsageError, "no dual cache"),
        (Request(prompt="w1 " * 64), {}, RequestError, "takes 64 tokens of the model's 64"),
        (Request(infill="w1 ___{40} w2 ___{40}"), {}, RequestError, "room for 64"),
        (Request(infill="w1 w2"), {}, RequestError, "no blank"),
        (Request(), {"decoder": "confidence", "threshold": 0.5}, UsageError, "no setting threshold"),
    ]:
        with pytest.raises(error, match=words):
            list(finished(model.generate([request], GenerateOptions(**options))))
    with pytest.raises(RequestError, match="no tokenizer"):
        list(finished(replace(model, tokenizer=None).generate([Request(prompt="w1")])))
    with pytest.raises(UsageError, match="max_tokens"):
        GenerateOptions(max_tokens=0)


def test_load_write_and_the_command_line(model, tmp_path, capsys):
    make(tmp_path, model.family)
    lm = manta.load(tmp_path, device="cpu")
    options = {"decoder": "deferred", "max_tokens": 6, "num_steps": 20}
    texts = lm.write(["w1 w2", None], seed=3, **options)
    assert all(set(text.split()) <= {f"w{i}" for i in range(45)} | {"user", "assistant", "system", "Be", "good"}
               for text in texts)  # fmt: skip
    arguments = ["--prompt", "w1 w2", "--decoder", "deferred", "--max-tokens", "6", "--num-steps", "20", "--seed", "3"]
    assert main(["generate", str(tmp_path), *arguments, "--device", "cpu", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["text"] == texts[0] and row["nfe"] <= 6


LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)
CHATML = (
    "{%- if messages[0]['role'] == 'system' %}{{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}"
    "{%- else %}{{- '<|im_start|>system\\nBe good<|im_end|>\\n' }}{%- endif %}{%- for message in messages %}"
    "{%- if not (message.role == 'system' and loop.first) %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def framed(
    folder: Path, template: object, turns: tuple[str, str] = ("<|a|>", "<|b|>")
) -> tuple[ForeignTokenizer, ChatFrame | None]:
    write_tokenizer(folder, turns)
    config = {"chat_template": template, "bos_token": {"content": "<|begin|>"}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = ForeignTokenizer.of_folder(folder)
    assert tokenizer is not None
    return tokenizer, find_frame(folder, tokenizer)


@pytest.mark.parametrize(
    ("template", "turns"),
    [(LLAMA3, ("<|eot_id|>", "<|start_header_id|>")), (CHATML, ("<|im_end|>", "<|im_start|>"))],
)
def test_a_frame_is_what_the_template_renders(tmp_path, template, turns):
    jinja2 = pytest.importorskip("jinja2")
    tokenizer, frame = framed(tmp_path, template, turns)
    assert frame is not None and frame.end == turns[0]
    earlier = [("system", "w7"), ("user", "w5 "), ("assistant", " w6 w3")]
    for history in ([], earlier[1:], earlier):
        said = [*history, ("user", " w1 w2 ")]
        messages = [{"role": role, "content": words} for role, words in said]
        settings = {"messages": messages, "bos_token": "<|begin|>", "add_generation_prompt": True}
        rendered = jinja2.Environment().from_string(template).render(**settings)
        assert frame.encode(" w1 w2 ", tokenizer, history) == tokenizer.encode(rendered, special_names=True)
    assert frame.encode(f"w1 {turns[0]}", tokenizer).count(50) == frame.encode("w1 w2", tokenizer).count(50)


def test_an_unknown_template_leaves_prompts_plain(tmp_path):
    write_tokenizer(tmp_path)
    tokenizer = ForeignTokenizer.of_folder(tmp_path)
    assert tokenizer is not None and find_frame(tmp_path, tokenizer) is None
    for template in ("[INST] {{ messages }}", [{"name": "default", "template": CHATML}], CHATML):
        with pytest.warns(UserWarning, match="chat template that manta does not know"):
            assert framed(tmp_path, template)[1] is None  # the tokenizer lacks ChatML's tokens


@pytest.mark.parametrize(
    "place",
    [
        "chat_template.jinja",
        "chat_template.json",
        "processor_config.json",
        "additional_chat_templates/default.jinja",
        "tokenizer_config.json, by name",
    ],
)
def test_a_template_is_found_wherever_it_is_stored(tmp_path, place):
    turns = ("<|eot_id|>", "<|start_header_id|>")
    if place.endswith("by name"):
        named = [{"name": "tool_use", "template": "[TOOL]"}, {"name": "default", "template": LLAMA3}]
        frame = framed(tmp_path, named, turns)[1]
    else:
        file = tmp_path / place
        file.parent.mkdir(exist_ok=True)
        file.write_text(LLAMA3 if place.endswith("jinja") else json.dumps({"chat_template": LLAMA3}))
        write_tokenizer(tmp_path, turns)
        tokenizer = ForeignTokenizer.of_folder(tmp_path)
        assert tokenizer is not None
        frame = find_frame(tmp_path, tokenizer)
    assert frame is not None and frame.end == "<|eot_id|>"


def test_a_template_in_a_file_of_its_own_overrules_the_configuration(tmp_path):
    (tmp_path / "chat_template.jinja").write_text("[INST]")
    with pytest.warns(UserWarning, match=r"chat_template\.jinja has a chat template"):
        assert framed(tmp_path, LLAMA3, ("<|eot_id|>", "<|start_header_id|>"))[1] is None


def test_a_text_is_its_tokens_up_to_the_end(tmp_path):
    model = make(tmp_path, "llada")
    assert model.tokenizer is not None
    for template in (None, "w1 ___{2} w2"):
        request = Request(prompt="w1", infill=template, seed=4)
        *_, done = model.generate([request], GenerateOptions(temperature=1.0, num_steps=9))
        ends = {model.eos_id}
        words = list(done.tokens)
        stop = next((i for i, word in enumerate(words) if word in ends), len(words)) if template is None else len(words)
        assert done.text == model.tokenizer.decode([word for word in words[:stop] if word not in ends])


def test_an_answer_ends_with_its_turn(tmp_path):
    write(tmp_path, "llada")
    framed(tmp_path, LLAMA3, ("<|eot_id|>", "<|start_header_id|>"))
    model = load_foreign(tmp_path, "cpu", dtype=torch.float32)
    assert model.frame is not None
    seen = []

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, tokens, mask):
            seen.append(tokens)
            logits = torch.zeros(*tokens.shape, 56)
            start = int((tokens[0] == MASK).nonzero()[0]) if (tokens[0] == MASK).any() else 0
            for offset, word in enumerate((3, 4, 50, 5)):
                if start + offset < tokens.shape[1]:
                    logits[:, start + offset, word] = 50.0
            return logits

    [text] = replace(model, net=Net()).write(["w1"], max_tokens=4, num_steps=1)
    assert text == "w3 w4"
    assert model.tokenizer is not None
    first = int((seen[0][0] == MASK).nonzero()[0])
    assert seen[0][0, :first].tolist() == model.frame.encode("w1", model.tokenizer)


def test_a_prompt_of_white_space_is_none(model):
    assert single(model, prompt=" \n ") == single(model, prompt="")


def test_words_to_change_are_hidden_in_part_and_written_anew(model, endless):
    """Word for word: at little strength all but one stand, at full strength none is seen."""
    infill = "w1 [[w2 w3 w4 w5]] w6"
    request = Request(prompt="w1", infill=infill, seed=4)
    *_, done = endless.generate([request], GenerateOptions(num_steps=9, strength=0.01))
    old = [1, 2, 3, 4, 5, None, None, 6]  # two places to grow into
    kept = [a == b for a, b in zip(done.tokens, old, strict=True)]
    assert sum(kept) >= 5 and kept[0] and kept[-1] and done.text.startswith("w1 ") and done.text.endswith(" w6")
    how = GenerateOptions(num_steps=9, strength=1.0)
    *_, anew = model.generate([request], how)
    *_, blank = model.generate([replace(request, infill="w1 ___{6} w6")], GenerateOptions(num_steps=9))
    assert anew.text == blank.text and anew.tokens == blank.tokens
    beside = [replace(request, prompt="w4 w5"), request, replace(request, seed=5)]
    events = {event.index: event for event in finished(model.generate(beside, how))}
    assert events[1].text == anew.text
    (refused,) = model.generate([Request(prompt="w1")], how)
    assert isinstance(refused.error, RequestError) and "words [[…]] to change" in str(refused.error)
