"""lm-evaluation-harness asks every family, and is told what our own evaluator tells."""

import json
import math
import tomllib
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from manta.cli import main
from manta.errors import DataError, RequestError, UsageError
from manta.evaluation import Contestant, choose, evaluation_set, likelihood, load_judge, run_tasks
from manta.evaluation.kept_answers import KeptAnswers
from manta.evaluation.questions import Question, Questioned
from manta.evaluation.replies import read_ask
from manta.families.autoregressive import AutoregressiveLM, log_likelihood
from manta.families.batching import to_batch
from manta.families.events import GenerateOptions, Request
from manta.families.masked import MaskedLM
from manta.hub import load, save_model
from manta.hub.digest import digest_of
from manta.masked import DECODERS
from manta.nets.modulated import ModulationConfig
from manta.runtime import make_generator
from manta.text import MASK, NULL

from ..families.conftest import WORDS, make_aligned, make_ar, make_block, make_lm, make_masked
from ..hub.test_foreign_writing import make as make_published
from .test_dataset import write

lm_eval = pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance  # noqa: E402

from manta.evaluation.harness import HarnessModel  # noqa: E402

PROMPTS = ["rain fell", "the cat", "some old river", "quiet hills and", "nobody", "it again"]
TEXTS = ["the cat sat", "rain fell over quiet hills", "a mat near", "river", "and nobody spoke of it", "hills"]


def make_taught() -> Any:
    lm = make_aligned()
    lm.causal = make_ar()
    return lm


MAKERS = {"ar": make_ar, "aligned": make_taught, "masked": make_masked, "block": make_block}


def asked(lm: Any, *, prompted: bool | None = True, **how: Any) -> HarnessModel:
    lm.prompted = prompted
    return HarnessModel(Contestant("it", lm, {}), **how)


def instances(kind: str, arguments: list[tuple[Any, ...]], docs: list[int] | None = None) -> list[Any]:
    found = []
    for at, each in enumerate(arguments):
        where = at if docs is None else docs[at]
        found.append(Instance(kind, {}, each, 0, ("task", where, 1)))  # pyright: ignore[reportArgumentType]
    return found


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> Path:
    """A task of each kind: the likelihood of texts, a choice, a text to write."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [
        {"prompt": p, "text": t, "choices": TEXTS[:3], "gold": i % 3}
        for i, (p, t) in enumerate(zip(PROMPTS, TEXTS, strict=True))
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = (
        f"dataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {folder / 'rows.jsonl'}\ntest_split: test\n"
    )
    kinds = {
        "whole": "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{text}}'\n"
        "metric_list:\n  - metric: word_perplexity\n  - metric: bits_per_byte\n",
        "choice": "output_type: multiple_choice\ndoc_to_text: '{{prompt}}'\ndoc_to_choice: '{{choices}}'\n"
        "doc_to_target: gold\nmetric_list:\n  - metric: acc\n",
        "written": "output_type: generate_until\ndoc_to_text: '{{prompt}}'\ndoc_to_target: '{{text}}'\n"
        "generation_kwargs:\n  until: ['.']\n  max_gen_toks: 6\nmetric_list:\n  - metric: exact_match\n",
    }
    for name, text in kinds.items():
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{common}{text}")
    return folder


EVERY = ["ar", "ar without prompts", "aligned", "aligned without its teacher", "masked", "block", "manta", "decoder"]
EVERY += ["llada", "Dream", "mdlm"]


def one_of(name: str, folder: Path) -> Any:
    if name in ("llada", "Dream", "mdlm"):
        return make_published(folder, name)
    if name == "decoder":
        from ..hub.test_causal import published

        published(folder, "llama")
        return load(folder, device="cpu")
    made = {"manta": make_lm, "aligned without its teacher": make_aligned, "ar without prompts": make_ar, **MAKERS}
    lm: Any = made[name]()
    lm.prompted = name != "ar without prompts"
    return lm


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n == "ar" else pytest.mark.slow) for n in EVERY])
def test_every_family_answers_a_task_of_each_kind(name, tasks, tmp_path):
    model = Contestant(name, one_of(name, tmp_path / "model"), {})
    knows = name not in ("manta", "aligned without its teacher")
    found = run_tasks(model, ["whole", "choice", "written"] if knows else ["written"], include=tasks, num=4, samples=2)
    row = found.row()
    kind = "exact" if name.startswith(("ar", "decoder")) or name == "aligned" else "bound" if knows else "none"
    assert row["likelihood"] == kind and row["greedy_known"] == (kind == "exact")
    assert (row["samples"] == 2) == (kind == "bound") == any("bounds" in warning for warning in found.warnings)
    assert row["documents"] == dict.fromkeys(row["tasks"], 4)
    if not knows:
        with pytest.raises(UsageError, match=r"no sound bound .* generate_until"):
            run_tasks(model, ["choice"], include=tasks, num=4)
        return
    if name == "mdlm":  # its tokenizer has no room for more
        assert row["context"] == "beginning"
    assert row["tasks"]["whole"]["word_perplexity"]["value"] > 1
    through = HarnessModel(model, samples=2)
    questions = [(p, f" {choice}") for p in PROMPTS[:4] for choice in TEXTS[:3]]
    values = [v for v, _ in through.loglikelihood(instances("multiple_choice", questions, [i // 3 for i in range(12)]))]
    best = [max(range(3), key=lambda j, i=i: values[3 * i + j]) for i in range(4)]
    assert row["tasks"]["choice"]["acc"]["value"] == pytest.approx(sum(b == i % 3 for i, b in enumerate(best)) / 4)
    told = through.loglikelihood_rolling(instances("loglikelihood_rolling", [(t,) for t in TEXTS[:4]]))
    words = sum(len(t.split()) for t in TEXTS[:4])
    assert row["tasks"]["whole"]["word_perplexity"]["value"] == pytest.approx(math.exp(-sum(told) / words), rel=1e-4)


@pytest.mark.parametrize("name", MAKERS)
def test_likelihoods_are_those_of_our_own_evaluator(name, tmp_path):
    """With prompts and without; bounds by the same draws."""
    lm: Any = MAKERS[name]()
    rows = [{"prompt": p, "text": t} for p, t in zip(PROMPTS, TEXTS, strict=True)]
    for pairs in (rows, [{"text": row["text"]} for row in rows]):
        data = evaluation_set(write(tmp_path / f"{len(pairs[0])}.jsonl", pairs), "all")
        own = likelihood(lm, data, samples=8, seed=3)
        assert own.nats_per_token is not None
        through, tokens = asked(lm, samples=8, seed=3), sum(len(lm.tokenizer.encode(t)) + 1 for t in TEXTS)
        if len(pairs[0]) == 2:
            told = [v for v, _ in through.loglikelihood(instances("x", list(zip(PROMPTS, TEXTS, strict=True))))]
            # In front of a continuation stands white space, which no text of ours begins with.
            spaced = through.loglikelihood(instances("x", [(p, f" {t}") for p, t in zip(PROMPTS, TEXTS, strict=True)]))
            assert [value for value, _ in spaced] == told
        else:
            told = through.loglikelihood_rolling(instances("x", [(t,) for t in TEXTS]))
        assert -sum(told) / tokens == pytest.approx(own.nats_per_token, rel=1e-5)


@pytest.mark.parametrize("name", MAKERS)
def test_a_choice_is_that_of_choose(name):
    lm: Any = MAKERS[name]()
    own = choose(lm, PROMPTS[:3], TEXTS[:3], samples=4, seed=5)
    questions = [(p, f" {t}") for p in PROMPTS[:3] for t in TEXTS[:3]]
    docs = [at // 3 for at in range(9)]
    values = torch.tensor([v for v, _ in asked(lm, samples=4, seed=5).loglikelihood(instances("x", questions, docs))])
    for at, answer in enumerate(own):
        chances = values.view(3, 3)[at].double().softmax(0).tolist()
        assert chances == pytest.approx(list(answer.chances.values()), rel=1e-3, abs=1e-6)


def test_a_model_of_texts_alone_takes_a_context_as_the_beginning_and_the_chain_rule_holds():
    lm = make_ar()
    through = asked(lm, prompted=False)
    parts = ["the cat sat", " on a mat", " near some old river"]
    whole, _ = through.loglikelihood(instances("x", [("", "".join(parts))]))[0]
    told = through.loglikelihood(instances("x", [("".join(parts[:i]), parts[i]) for i in range(3)]))
    assert whole == pytest.approx(sum(value for value, _ in told), rel=1e-5)
    # White space at the end of a context belongs to the continuation.
    assert through.loglikelihood(instances("x", [("the cat sat ", "on a mat")]))[0] == pytest.approx(told[1])
    closed = through.loglikelihood_rolling(instances("x", [("".join(parts),)]))[0]
    row = lm.tokenizer.encode("".join(parts))
    assert closed == pytest.approx(float(log_likelihood(lm.model, to_batch([()], [row]))), rel=1e-5)
    assert closed < whole
    forced = asked(make_ar(), prompted=True, context="beginning")
    assert forced.loglikelihood(instances("x", [("".join(parts[:2]), parts[2])]))[0] == pytest.approx(told[2])


def test_choices_of_a_token_are_read_once_and_prompts_encoded_once(monkeypatch):
    lm, seen = make_ar(), []
    words, net = lm.tokenizer.encode(WORDS[0]), lm.model
    texts = [lm.tokenizer.decode([word], start=False) for word in words[:9]]
    questions = [(context, text) for context in ("the cat", "rain fell over") for text in texts]
    through = asked(lm, prompted=False)
    alone = [through.loglikelihood(instances("x", [each]))[0] for each in questions]
    hidden, memory = net.hidden, net.memory
    monkeypatch.setattr(net, "hidden", lambda given, kept: seen.append(len(given)) or hidden(given, kept))
    together = through.loglikelihood(instances("x", questions))
    assert sum(seen) == 2
    assert [value for value, _ in together] == pytest.approx([value for value, _ in alone], rel=1e-5)
    assert [greedy for _, greedy in together] == [greedy for _, greedy in alone]
    seen.clear()
    monkeypatch.setattr(net, "memory", lambda prompt, *rest: seen.append(len(prompt)) or memory(prompt, *rest))
    asked(lm).loglikelihood(instances("x", questions))
    assert seen[0] == 2 and sum(seen[1:]) == len(questions)


def test_known_words_are_never_hidden_and_a_single_one_has_its_exact_chance():
    """Behind known words one that is hidden alone is told by one call of the net."""
    lm = make_masked()
    row = lm.tokenizer.encode("the cat sat on a mat")
    batch, known = to_batch([[5, 6]], [row]), torch.tensor([len(row) - 1])
    found = lm.log_likelihood(batch, [make_generator(0)], 64, known)
    canvas = torch.tensor([[*row, NULL]])
    with torch.no_grad():
        memory = lm.model.memory(batch.prompt, batch.prompt_lengths, batch.tag)
        projected, total = lm.model.trunk.project(memory.states, memory.mask), 0.0
        for hidden, weight in (([len(row) - 1], 0.5), ([len(row)], 0.5), ([len(row) - 1, len(row)], 0.5)):
            shown = canvas.clone()
            shown[0, hidden] = MASK
            told = lm.model(shown, torch.ones_like(canvas, dtype=torch.bool), projected).log_softmax(-1)
            # One of two is hidden with probability 1/2, either alike, and weighs twice; both with 1/2.
            total += weight * float(sum(told[0, place, canvas[0, place]] for place in hidden))
    error = found.standard_error
    assert error is not None and abs(float(found.value) - total) < 4 * float(error) + 1e-4


def test_blocks_of_one_word_behind_known_ones_are_the_chain_rule():
    lm = make_block(block_length=1)
    source = make_ar()
    lm.model.load_state_dict(source.model.state_dict(), strict=False)
    assert lm.model.own is not None
    torch.nn.init.zeros_(lm.model.own.weight)
    rows = [lm.tokenizer.encode(text) for text in TEXTS[:3]]
    batch, known = to_batch([()] * 3, rows), torch.tensor([1, 3, 0])
    found = lm.log_likelihood(batch, [make_generator(0)] * 3, 2, known)
    assert isinstance(source, AutoregressiveLM)
    torch.testing.assert_close(found.value, source.log_likelihood(batch, known=known).value, rtol=1e-4, atol=1e-4)


def test_a_published_masked_model_has_a_bound_that_hides_the_continuation_alone(tmp_path):
    """Of one word, the exact chance behind the context; of two, the mean over what may be hidden."""
    lm = make_published(tmp_path, "llada")
    assert lm.tokenizer is not None
    context, words = lm.tokenizer.encode("w1 w2 w3"), lm.tokenizer.encode(" w4 w5")
    assert len(context) == 3 and len(words) == 2
    row = torch.tensor([[*context, *words]])
    total = 0.0
    for count in range(1, len(words) + 1):
        for hidden in torch.combinations(torch.arange(len(words)), count) + len(context):
            shown = row.clone()
            shown[0, hidden] = lm.mask_id
            told = lm.logits(shown).log_softmax(-1)[0]
            share = math.comb(len(words), count) * count
            total += float(sum(told[place, row[0, place]] for place in hidden.tolist())) / share
    through = HarnessModel(Contestant("it", lm, {}), samples=300)
    [(value, greedy)] = through.loglikelihood(instances("x", [("w1 w2 w3", " w4 w5")]))
    assert value == pytest.approx(total, rel=0.05) and not greedy
    assert through.get_model_info()["likelihood"] == "bound"


def test_a_continuation_is_greedy_if_each_of_its_tokens_is_the_likeliest():
    lm, words, right = make_ar(), WORDS[0].split(), 0
    through = asked(lm, prompted=False)
    for count in range(1, 12):
        context = " ".join(words[:count])
        row = lm.tokenizer.encode(context)
        given = torch.tensor([[lm.model.begin, *row]])
        with torch.no_grad():
            memory = lm.model.memory(given[:, :0], given[:, 0] * 0, given[:, 0] * 0)
            ranked = lm.model(given, memory)[0, -1].argsort(descending=True).tolist()
        texts = [lm.tokenizer.decode([token], start=False) for token in ranked]
        held = [at for at, text in enumerate(texts) if lm.tokenizer.encode(context + text) == [*row, ranked[at]]]
        held = [at for at in held if texts[at].strip()][:20]
        told = through.loglikelihood(instances("x", [(context, texts[at]) for at in held]))
        assert [greedy for _, greedy in told] == [at == 0 for at in held]
        right += held[0] == 0
    assert right > 0
    # The closing token of an answer is asked, too.
    [(_, ended)] = asked(make_ar()).loglikelihood(instances("x", [("rain", " the cat sat")]))
    assert not ended


def test_long_texts_are_read_in_the_windows_of_a_judge(tmp_path):
    lm, text = make_ar(), f"{WORDS[0]} {WORDS[0]} {WORDS[0]}"
    save_model(tmp_path, lm, recipe={}, card="", dtype=torch.float32)
    nats, _ = load_judge(str(tmp_path))([text, "rain"])
    told = asked(lm).loglikelihood_rolling(instances("x", [(text,), ("rain",), ("",)]))
    assert told == pytest.approx([-float(nats[0]), -float(nats[1]), 0.0], rel=1e-5)
    with pytest.raises(RequestError, match="bounds of its windows are no bound"):
        asked(make_masked()).loglikelihood_rolling(instances("x", [(text,)]))


def test_what_has_no_room_is_refused_or_cut_at_its_beginning():
    long = f"{WORDS[0]} {PROMPTS[0]}"
    for prompted in (True, False):
        lm = make_ar()
        with pytest.raises(RequestError, match="--lm-eval-cut"):
            asked(lm, prompted=prompted).loglikelihood(instances("x", [(long, " the cat")]))
        cut = asked(lm, prompted=prompted, cut=True).loglikelihood(instances("x", [(long, " the cat")]))[0]
        most = 12 if prompted else 24 - len(lm.tokenizer.encode(f"{long} the cat")[len(lm.tokenizer.encode(long)) :])
        end = lm.tokenizer.encode(long)[-most:]
        rest = lm.tokenizer.encode("the cat" if prompted else " the cat", start=prompted)
        if prompted:
            wanted = float(log_likelihood(lm.model, to_batch([end], [rest])))
        else:
            given, target, _ = lm.model.shifted(to_batch([()], [[*end, *rest]]))
            with torch.no_grad():
                memory = lm.model.memory(target[:, :0], target[:, 0] * 0, target[:, 0] * 0)
                told = lm.model(given, memory).log_softmax(-1).gather(2, target[..., None])[0, :, 0]
            wanted = float(told[len(end) : len(end) + len(rest)].sum())
        assert cut[0] == pytest.approx(wanted, rel=1e-4)
    with pytest.raises(RequestError, match="from 1 to 24"):
        asked(make_ar()).loglikelihood(instances("x", [("rain", f" {WORDS[0]} {WORDS[0]}")]))


@pytest.mark.slow
def test_a_published_causal_model_is_told_what_the_harness_itself_tells_of_it(tmp_path):
    """The harness's own model of `transformers`: likelihoods, greedy or not, and whole texts."""
    transformers = pytest.importorskip("transformers")
    from lm_eval.models.huggingface import HFLM
    from tokenizers.processors import TemplateProcessing

    from ..hub.test_causal import published

    published(tmp_path, "llama with grouped queries, tied")
    fast = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    fast.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    fast.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
    fast.save_pretrained(tmp_path)
    hf: Any = HFLM
    theirs = hf(pretrained=str(tmp_path), device="cpu", dtype="float32", batch_size=2, add_bos_token=True)
    ours = HarnessModel(str(tmp_path), device="cpu")
    lm: Any = ours.asked.lm
    pairs = [
        ("the cat sat", " on the mat"),
        ("it was", " warm and"),
        ("the dog ran to", " the hill ."),
        ("", "the sun"),
    ]
    likely = lm.write("the cat", max_tokens=4)
    pairs.append(("the cat", likely))
    mine, other = (model.loglikelihood(instances("loglikelihood", pairs)) for model in (ours, theirs))
    assert [value for value, _ in mine] == pytest.approx([value for value, _ in other], rel=1e-4)
    assert [greedy for _, greedy in mine] == [greedy for _, greedy in other]
    texts = [("the cat sat on the mat",), ("it was warm",)]
    # With a beginning put before the text as well as before the row, theirs would ask for it, too.
    plain = hf(pretrained=str(tmp_path), device="cpu", dtype="float32", batch_size=2, add_bos_token=False)
    rolled = [model.loglikelihood_rolling(instances("loglikelihood_rolling", texts)) for model in (ours, plain)]
    assert rolled[0] == pytest.approx(rolled[1], rel=1e-4)
    # Ours has the closing token beside it.
    row = lm.tokenizer.encode(texts[1][0])
    given, target, _ = lm.model.shifted(to_batch([()], [row]))
    with torch.no_grad():
        memory = lm.model.memory(target[:, :0], target[:, 0] * 0, target[:, 0] * 0)
        end = float(lm.model(given, memory)[0, len(row)].log_softmax(-1)[lm.model.end])
    assert lm.likelihoods([[]], [row])[0] == pytest.approx(rolled[0][1] + end, rel=1e-4)


def never(some: Any) -> Any:
    raise AssertionError(f"asked again: {some}")


def test_answers_are_kept_by_weights_and_question_and_each_is_asked_once(tmp_path):
    lm, file = make_ar(), tmp_path / "answers.db"
    questions = [("rain", " hills"), ("the cat", " sat"), ("rain", " hills")]
    through, seen = asked(lm, cache=file), []
    find = through.asked.continuations
    through.asked.continuations = lambda some: seen.append(len(some)) or find(some)  # type: ignore[method-assign]
    first = through.loglikelihood(instances("x", questions))
    assert seen == [2] and first[0] == first[2]
    again = asked(make_ar(), cache=file)  # the same weights
    again.asked.continuations = never  # type: ignore[method-assign]
    assert again.loglikelihood(instances("x", questions)) == first
    with torch.no_grad():
        lm.model.embedding.weight[lm.tokenizer.encode("rain")] += 0.1
    assert digest_of(lm) != digest_of(make_ar())
    assert asked(lm, cache=file).loglikelihood(instances("x", questions)) != first
    written = again.generate_until(instances("x", [("rain", {"until": ["."], "max_gen_toks": 3})]))
    again.replying.replies = never  # type: ignore[method-assign]
    assert again.generate_until(instances("x", [("rain", {"until": ["."], "max_gen_toks": 3})])) == written
    bounded = asked(make_masked(), cache=file, samples=2)
    assert bounded.loglikelihood(instances("x", questions[:1])) != bounded.loglikelihood(
        instances("x", questions[:1], [7])
    )


def test_answers_belong_to_all_that_a_model_is(tmp_path):
    """Shape and special tokens of a published model, and what is stored beside weights, count like the weights."""
    published = make_published(tmp_path, "llada")
    told = {digest_of(published), digest_of(replace(published, eos_id=3)), digest_of(replace(published, max_length=32))}
    net: Any = published.net
    net.shape = replace(net.shape, eps=0.1)
    masked = make_masked()
    told |= {
        digest_of(published),
        digest_of(masked),
        digest_of(MaskedLM(masked.model, masked.tokenizer, DECODERS["block"]())),
    }
    assert len(told) == 6


def test_two_may_keep_answers_in_one_file_at_the_same_time(tmp_path):
    one, two = (KeptAnswers(tmp_path / "answers.db", name) for name in "ab")
    how: dict[str, Any] = {"spell": str, "read": float, "tell": float}

    def between(some: Any) -> Any:
        yield 0, 1.0
        assert two.ask({}, ["x"], lambda asked: iter([(0, 2.0)]), **how) == [2.0]
        yield 1, 3.0

    assert one.ask({}, ["x", "y"], between, **how) == [1.0, 3.0]


def test_an_interrupted_evaluation_goes_on_where_it_was(tmp_path):
    kept = KeptAnswers(tmp_path / "answers.db", "model")

    def stopped(some: Any) -> Any:
        yield 0, 1.5
        raise KeyboardInterrupt

    how: dict[str, Any] = {"spell": str, "read": float, "tell": float}
    with pytest.raises(KeyboardInterrupt):
        kept.ask({}, ["a", "b"], stopped, **how)
    asked_for: list[Any] = []
    again = KeptAnswers(tmp_path / "answers.db", "model")
    assert again.ask({}, ["a", "b"], lambda some: asked_for.extend(some) or iter([(0, 2.5)]), **how) == [1.5, 2.5]
    assert asked_for == ["b"]
    assert again.ask({"seed": 1}, ["a"], lambda some: iter([(0, 3.0)]), **how) == [3.0]


def test_a_file_that_keeps_no_answers_is_one_line(tmp_path):
    (tmp_path / "x").write_text("no database, and long enough to have the head of one " * 20)
    with pytest.raises(DataError, match="cannot serve to keep answers"):
        KeptAnswers(tmp_path / "x", "model")
    kept = KeptAnswers(tmp_path / "y", "model")
    kept.ask({}, ["a"], lambda some: iter([(0, "no number")]), spell=str, read=str, tell=str)
    with pytest.raises(DataError, match="an answer that is none"):
        kept.ask({}, ["a"], lambda some: iter([(0, 1.0)]), spell=str, read=float, tell=float)


def test_what_a_task_asks_of_writing_is_followed_or_refused_by_name():
    ask = read_ask(
        "x",
        {"until": "\n", "max_gen_toks": 5, "do_sample": False, "temperature": 0.7, "top_p": 0.5},
        {},
        3,
    )
    assert (ask.until, ask.limit, ask.options, ask.seed) == (("\n",), 5, GenerateOptions(), 3)
    drawn = read_ask("x", {"do_sample": True, "top_k": 4}, {"temperature": 0.5}, 0)
    assert (drawn.options.temperature, drawn.options.top_k) == (0.5, 4)
    assert read_ask("x", {"temperature": 0.8, "num_beams": 1}, {}, 0).options.temperature == 0.8
    for how, name in (
        ({"num_beams": 4}, "num_beams=4"),
        ({"penalty_alpha": 0.6}, "penalty_alpha"),
        ({"max_gen_toks": 0}, "at most 0"),
    ):
        with pytest.raises(UsageError, match=name):
            read_ask("x", how, {}, 0)
    with pytest.raises(UsageError, match="`top_k`"):
        asked(make_masked()).generate_until(instances("x", [("rain", {"do_sample": True, "top_k": 3})]))


def test_what_is_asked_for_overrules_a_task_even_where_it_is_the_default(tasks, tmp_path, capsys):
    """A temperature of 0 that somebody asks for draws nothing, and what the task loses is said."""
    drawn = {"do_sample": True, "temperature": 0.8, "top_p": 0.5}
    ask = read_ask("x", drawn, {"temperature": 0.0}, 0)
    assert ask.options == GenerateOptions()
    assert ask.overruled == ("temperature=0.0 instead of 0.8", "top_p=0.5 left out")
    assert read_ask("x", {"do_sample": True}, {"temperature": 0}, 0).overruled == ("temperature=0.0 instead of 1.0",)
    assert read_ask("x", drawn, {}, 0).overruled == read_ask("x", {}, {"temperature": 0.0}, 0).overruled == ()
    forced = read_ask("x", {"do_sample": False}, {"temperature": 0.5}, 0)
    assert (forced.options.temperature, len(forced.overruled)) == (0.5, 1)
    greedy = (tasks / "written.yaml").read_text()
    draws = "generation_kwargs:\n  do_sample: true\n  temperature: 0.8\n"
    folder = tmp_path / "drawn"
    folder.mkdir()
    (folder / "drawn.yaml").write_text(
        greedy.replace("task: written", "task: drawn").replace("generation_kwargs:\n", draws)
    )
    save_model(tmp_path / "ar", make_ar(), recipe={"data": "x.jsonl"}, card="", dtype=torch.float32)
    command = ["evaluate", str(tmp_path / "ar"), "--lm-eval", "drawn", "--lm-eval-include", str(folder), "--json"]
    assert main([*command, "--num", "2", "--temperature", "0"]) == 0
    told = capsys.readouterr()
    report = json.loads(told.out)
    assert (report["options"], report["overruled"]) == ({"temperature": 0.0}, ["temperature=0.0 instead of 0.8"])
    assert "what was asked for overruled what tasks ask for: temperature=0.0 instead of 0.8" in told.err


def test_replies_end_before_a_stop_and_within_their_limit():
    for name, make in MAKERS.items():
        lm: Any = make()
        lm.prompted = True
        [event] = [e for e in lm.generate([Request(prompt="the cat")]) if e.kind == "done"]
        words = [word for word in event.tokens if word not in (NULL, MASK)]
        assert len(event.text) > 4 and len(words) > 2, name
        stops = event.text[-1:], event.text[3:5]
        through = asked(lm)
        asks = [("the cat", {"until": [*stops, "never"]}), ("the cat", {"until": [], "max_gen_toks": 2})]
        first, short = through.generate_until(instances("x", asks, [0, 0]))
        assert first == event.text[: min(event.text.index(stop) for stop in stops)]
        assert short == lm.tokenizer.decode(words[:2]).strip(), name


def test_drawn_replies_have_seeds_of_their_own_and_are_the_same_alone():
    lm = make_ar()
    how = {"do_sample": True, "temperature": 1.0, "max_gen_toks": 8}
    twice = instances("x", [("rain", how), ("rain", how), ("the cat", how)], [0, 0, 1])
    for instance in twice:
        instance.repeats = 2
    found = asked(lm).generate_until(twice)
    assert found[0] != found[1]
    assert asked(lm).generate_until(twice[2:]) == found[2:]
    lm.prompted = True
    assert found[2] == lm.write("the cat", seed=2, temperature=1.0, max_tokens=8)


def test_a_beginning_is_gone_on_with():
    """Left to right as word after likeliest word; masked and block-causal models fill a blank behind it."""
    lm = make_ar()
    context = "the cat sat"
    [found] = asked(lm, prompted=False).generate_until(instances("x", [(context, {"max_gen_toks": 5})]))
    row = lm.tokenizer.encode(context)
    for _ in range(5):
        given = torch.tensor([[lm.model.begin, *row]])
        with torch.no_grad():
            memory = lm.model.memory(given[:, :0], given[:, 0] * 0, given[:, 0] * 0)
            row.append(int(lm.model(given, memory)[0, -1].argmax()))
        if row[-1] == lm.model.end:
            row.pop()
            break
    assert found == lm.tokenizer.decode(row[len(lm.tokenizer.encode(context)) :], start=False).lstrip()
    for filler in (make_masked(), make_block()):
        [filled] = asked(filler, prompted=False).generate_until(instances("x", [(context, {"max_gen_toks": 5})]))
        assert f"{context} {filled}" == filler.write(infill=f"{context} ___{{5}}")


def test_a_chat_of_one_turn_stands_in_the_frame_once(tmp_path):
    from manta.hub.foreign.chat import ChatFrame

    lm = make_published(tmp_path, "llada")
    frame = ChatFrame(opening="<|{}|>", closing="", end="<|end|>", trimmed=True)
    framed = HarnessModel(Contestant("it", replace(lm, frame=frame), {}))
    assert framed.apply_chat_template([{"role": "user", "content": " hello "}]) == "<|user|>hello<|assistant|>"
    begun = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "Yes"}]
    assert framed.apply_chat_template(begun, add_generation_prompt=False) == "<|user|>hello<|assistant|>Yes"
    with pytest.raises(UsageError, match="system, user"):
        framed.apply_chat_template([{"role": "system", "content": "x"}, {"role": "user", "content": "y"}])
    with pytest.raises(UsageError, match="no chat frame"):
        HarnessModel(Contestant("it", lm, {})).apply_chat_template([{"role": "user", "content": "x"}])


def test_a_cut_context_keeps_its_chats_frame_whole(tmp_path):
    """Both marks of the turn stay, and of what is said its end; the reply has its room, beside the frame's own."""
    from manta.hub.foreign.chat import ChatFrame

    lm: Any = make_published(tmp_path, "llada")
    frame = ChatFrame(opening="<|begin|>{}<|end_header_id|>\n\n", closing="<|end|>", end="<|end|>", trimmed=True)
    framed = HarnessModel(Contestant("it", replace(lm, frame=frame), {}), cut=True)
    names = [f"w{number % 45}" for number in range(200)]
    context = framed.apply_chat_template([{"role": "user", "content": " ".join(names)}])
    row = framed.asked._row(Question(context, "w3 w4"))
    encode = lm.tokenizer.encode
    head, tail = encode(frame.before, special_names=True), encode(frame.after, special_names=True)
    kept = lm.max_length - len(head) - len(tail) - 2
    assert kept > 20
    assert row.text == (*head, *encode(" ".join(names[-kept:])), *tail, *encode("w3 w4"))
    begun = framed.asked._row(Question(context + "w7 w8", " w3"))
    assert begun.text[: len(head)] == tuple(head) and begun.text[-len(tail) - 3 :] == (*tail, *encode("w7 w8 w3"))
    assert len(begun.text) == lm.max_length
    prompt = framed.replying._prompt(read_ask(context, {"max_gen_toks": 9}, {}, 0))
    assert prompt == " ".join(names[-(lm.max_length - len(head) - len(tail) - 9) :])
    with pytest.raises(RequestError, match="a chat's frame takes"):
        framed.asked._row(Question(context + " ".join(names), " w3"))


def test_a_context_before_a_blank_is_cut_like_any_other():
    lm = make_masked()
    context = f"{WORDS[0]} {PROMPTS[0]}"
    with pytest.raises(RequestError, match="--lm-eval-cut"):
        asked(lm, prompted=False).generate_until(instances("x", [(context, {"max_gen_toks": 5})]))
    [filled] = asked(lm, prompted=False, cut=True).generate_until(instances("x", [(context, {"max_gen_toks": 5})]))
    end = lm.tokenizer.decode(lm.tokenizer.encode(context)[-18:])
    assert context.endswith(end) and f"{end} {filled}" == lm.write(infill=f"{end} ___{{5}}")


def test_the_entry_point_is_a_model_of_the_harness():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    [(name, where)] = project["project"]["entry-points"]["lm_eval.models"].items()
    module, _, made = where.partition(":")
    assert name == "manta" and issubclass(getattr(import_module(module), made), lm_eval.api.model.LM)
    with pytest.raises(UsageError, match="mc_num"):
        HarnessModel.create_from_arg_string("samples=4,mc_num=4")
    with pytest.raises(UsageError, match="no option 'num_stepz'"):
        HarnessModel(Contestant("it", make_ar(), {}), num_stepz=3)
    assert HarnessModel(Contestant("it", make_masked(), {}), mc_num=16).asked.samples == 16


def test_a_model_with_tasks_is_asked_as_the_model_of_one_and_another_takes_none(tasks, tmp_path, monkeypatch, capsys):
    from manta.evaluation.lm_eval import main as command

    lm: Any = make_ar(modulation=ModulationConfig(kind="low_rank"), tasks=("fill", "shorten"))
    lm.prompted = True
    folders = [str(tmp_path / name) for name in ("tasks", "plain")]
    for folder, each in zip(folders, (lm, make_ar()), strict=True):
        save_model(Path(folder), each, recipe={"data": "x.jsonl"}, card="", dtype=torch.float32)
    questions = instances("x", list(zip(PROMPTS, TEXTS, strict=True)))
    told = HarnessModel.create_from_arg_string(f"pretrained={folders[0]},task=shorten")
    assert told.get_model_info()["task"] == "shorten"
    alone, other = (asked(lm.of_task(name)) for name in ("shorten", "fill"))
    assert told.loglikelihood(questions) == alone.loglikelihood(questions) != other.loglikelihood(questions)
    wrong = [
        (folders[0], None, "say which task"),
        (folders[0], "x", "no task 'x'"),
        (folders[1], "fill", "no tasks to"),
    ]
    for folder, task, words in wrong:
        with pytest.raises(RequestError, match=words):
            HarnessModel(folder, task=task)
        monkeypatch.setattr("lm_eval.__main__.cli_evaluate", lambda f=folder, t=task: HarnessModel(f, task=t))
        assert command() == RequestError.exit_code
        assert words in capsys.readouterr().err
        verb = ["evaluate", folder, "--lm-eval", "choice", "--lm-eval-include", str(tasks), "--num", "3"]
        assert main([*verb, *([] if task is None else ["--task", task])]) == RequestError.exit_code
        assert words in capsys.readouterr().err
    assert main([*verb[:1], folders[0], *verb[2:], "--task", "shorten"]) == 0
    assert "(ar), its task shorten, lm-eval" in capsys.readouterr().out


def test_the_harness_own_command_has_manta_among_its_models_and_an_error_is_one_line(tmp_path, monkeypatch, capsys):
    from lm_eval.api.registry import get_model, model_registry

    from manta.evaluation.lm_eval import main as command

    asked = []
    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", lambda: asked.append(get_model("manta")))
    assert command() == command() == 0
    assert asked == [HarnessModel, HarnessModel] and "hf" in model_registry

    def wrong() -> None:
        raise UsageError("no option\n'num_stepz'")

    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", wrong)
    assert command() == UsageError.exit_code
    assert capsys.readouterr().err == "lm_eval: error: no option 'num_stepz'\n"
    # What the command asks for where nobody says a device.
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    save_model(tmp_path / "ar", make_ar(), recipe={}, card="", dtype=torch.float32)
    lm: Any = HarnessModel(str(tmp_path / "ar"), device="cuda:0").asked.lm
    assert lm.device.type == "cpu"


def test_the_task_of_the_page_on_the_harness_runs(tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "lm-eval.md").read_text(encoding="utf-8")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "restaurants.yaml").write_text(page.split("```yaml\n")[1].split("```")[0])
    rows = [{"prompt": p, "choices": TEXTS[:2], "gold": 0} for p in PROMPTS[:3]]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    found = run_tasks(Contestant("it", make_ar(), {}), ["restaurants"], include=Path("tasks"))
    assert found.documents == {"restaurants": 3} and found.figures[0].metric == "acc"


def test_without_the_harness_its_extra_is_named(monkeypatch):
    monkeypatch.setattr("manta.evaluation.harness_tasks.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install 'manta\[lm-eval\]'"):
        run_tasks(Contestant("it", make_ar(), {}), ["choice"])


def test_a_task_whose_data_is_missing_is_one_line(tasks, tmp_path):
    text = (tasks / "choice.yaml").read_text().replace("rows.jsonl", "nothing.jsonl").replace("choice", "lost", 1)
    (tmp_path / "lost.yaml").write_text(text)
    with pytest.raises(DataError, match=r"could not run lost .*nothing\.jsonl"):
        run_tasks(Contestant("it", make_ar(), {}), ["lost"], include=tmp_path)


@pytest.mark.slow
def test_a_task_that_there_is_not_is_named(tasks):
    with pytest.raises(UsageError, match="knows no task 'nonsense'"):
        run_tasks(Contestant("it", make_ar(), {}), ["choice", "nonsense"], include=tasks)


def test_a_question_of_no_words_is_refused():
    with pytest.raises(RequestError, match="takes 0 tokens"):
        list(Questioned(Contestant("it", make_ar(), {})).continuations([Question("rain", " ")]))


def test_the_command_line_tells_tasks_as_json_and_refuses_what_means_nothing(tasks, tmp_path, capsys):
    save_model(tmp_path / "ar", make_ar(), recipe={"data": "x.jsonl"}, card="", dtype=torch.float32)
    model, out = str(tmp_path / "ar"), tmp_path / "report.json"
    command = ["evaluate", model, "--lm-eval", "choice,whole", "--lm-eval-include", str(tasks), "--num", "3"]
    assert main([*command, "--json", "--out", str(out), "--lm-eval-cache", str(tmp_path / "kept.db")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads(out.read_text())
    assert (report["report"], report["likelihood"], report["family"]) == ("manta evaluate", "exact", "ar")
    assert set(report["tasks"]) == {"choice", "whole"} and report["documents"] == {"choice": 3, "whole": 3}
    assert report["tasks"]["choice"]["acc"]["standard_error"] is not None
    for arguments, words in (
        (["--data", "builtin:weather"], "--data means nothing"),
        (["--lm-eval-include", str(tmp_path / "no")], "no folder"),
    ):
        assert main([*command, *arguments]) == 2
        assert words in capsys.readouterr().err
    assert main(["evaluate", model, "--data", "builtin:weather", "--lm-eval-cut"]) == 2
    assert "--lm-eval-cut is for tasks" in capsys.readouterr().err
