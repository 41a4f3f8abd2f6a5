from __future__ import annotations

import math
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from abctune.core.errors import UserError
from abctune.core.params import load_params
from abctune.llm.chat import prompt_ids
from abctune.llm.tokenizer import load_tokenizer
from app.engines import Job
from app.engines.choose import load_engine
from app.engines.lora_gguf import convert
from app.engines.transformers_engine import next_token
from app.models import find_models, read_adapter
from app.request import Sampling
from tests import small
from tests.app import planted

GREEDY = Sampling(temperature=0, repetition_penalty=1)


def answers(engine, jobs):
    texts, counts, ends = [""] * len(jobs), [0] * len(jobs), [None] * len(jobs)
    for piece in engine.stream(jobs):
        texts[piece.index] += piece.text
        counts[piece.index] = piece.n_tokens
        ends[piece.index] = piece.finish or ends[piece.index]
    return texts, counts, ends


def job(tokenizer, model, text="hello", n=8, sampling=GREEDY):
    return Job(model, prompt_ids(tokenizer, [{"role": "user", "content": text}]), n, sampling)


def test_each_model_answers_as_itself_in_any_order(engine, tokenizer):
    for model in ("A", "base", "C", "B", "base", "A"):
        assert answers(engine, [job(tokenizer, model)]) == ([planted.LETTERS[model] * 8], [8], ["length"])


def test_a_comparison_gives_each_model_its_own_answer(engine, tokenizer):
    names = ["C", "base", "A", "B"]
    texts, counts, ends = answers(
        engine, [job(tokenizer, name, text="q " * place, n=4 + place) for place, name in enumerate(names, 1)]
    )
    assert texts == ["ccccc", "zzzzzz", "aaaaaaa", "bbbbbbbb"]
    assert counts == [5, 6, 7, 8] and set(ends) == {"length"}


def test_the_answers_of_a_comparison_grow_together(engine, tokenizer):
    """Nobody's answer is finished before everybody's has begun."""
    names = ["base", "A", "B", "C"]
    order = [
        piece.index for piece in engine.stream([job(tokenizer, name, n=48) for name in names]) if piece.text
    ]
    begun = {index: order.index(index) for index in range(4)}
    ended = {index: len(order) - order[::-1].index(index) for index in range(4)}
    assert max(begun.values()) < min(ended.values())


def tokens_after_leaving(stream) -> float:
    """Of a stream of 400 tokens that is left after 20: how many more are computed, by the processor's time, not the clock's."""
    while not next(stream).text:
        pass
    started = time.process_time()
    for _ in range(20):
        next(stream)
    left = time.process_time()
    stream.close()
    return 20 * (time.process_time() - left) / (left - started)


def test_an_answer_can_be_had_token_by_token_and_comes_in_fewer_pieces_else(engines, tokenizer):
    def sizes(one: Job) -> list[int]:
        counts = [0] + [piece.n_tokens for piece in engines["llama.cpp"].stream([one])]
        return [b - a for a, b in pairwise(counts)]

    asked = job(tokenizer, "A", n=60)
    assert max(sizes(replace(asked, by_token=True))) == 1
    together = sizes(asked)
    assert max(together) > 1 and sum(together) == 60


@pytest.mark.usefixtures("token_by_token")
def test_a_comparison_that_is_left_frees_the_engine_and_the_next_is_right(engine, tokenizer):
    assert tokens_after_leaving(engine.stream([job(tokenizer, name, n=400) for name in ("A", "B")])) < 100
    assert answers(engine, [job(tokenizer, name, n=3) for name in ("B", "A")])[0] == ["bbb", "aaa"]


@pytest.mark.usefixtures("token_by_token")
def test_a_generation_ends_when_its_reader_stops_reading_and_the_next_is_right(engine, tokenizer):
    assert tokens_after_leaving(engine.stream([job(tokenizer, "A", n=400)])) < 100
    assert answers(engine, [job(tokenizer, "B", n=3)])[0] == ["bbb"]


@pytest.fixture(scope="module")
def random_pair(tmp_path_factory):
    """Both engines on one random model with a random adapter on every linear layer."""
    root = tmp_path_factory.mktemp("random")
    small.write_model(root / "models/base", seed=1)
    planted.speak_ascii(root / "models/base")
    planted.write_gguf(root / "models/base")
    planted.write_adapter(root / "models/A", root / "models/base", seed=2)
    models = find_models(root, root / "models/base", load_params(), only="A")
    tokenizer = load_tokenizer(root / "models/base")
    return tokenizer, [
        load_engine(name, models, tokenizer, root / "cache") for name in ("llama.cpp", "transformers")
    ]


def test_both_engines_give_the_same_greedy_answers_with_and_without_the_adapter(random_pair):
    tokenizer, engines = random_pair
    prompts = [" ".join(small.WORDS[start : start + 6]) for start in range(0, 60, 6)]
    for model in ("base", "A"):
        ours, theirs = (
            [answers(engine, [job(tokenizer, model, text, n=20)])[0] for text in prompts]
            for engine in engines
        )
        same = sum(one == other for one, other in zip(ours, theirs, strict=True))
        assert same >= 0.9 * len(prompts), f"{model}: {same} of {len(prompts)}"
    base, adapted = (
        [answers(engines[0], [job(tokenizer, model, text, n=20)])[0] for text in prompts]
        for model in ("base", "A")
    )
    assert base != adapted


def test_both_engines_apply_the_repetition_penalty_alike(random_pair):
    tokenizer, engines = random_pair
    penalised = Sampling(temperature=0, repetition_penalty=1.3)
    ours, theirs = (answers(engine, [job(tokenizer, "A", n=20, sampling=penalised)])[0] for engine in engines)
    assert ours == theirs != answers(engines[0], [job(tokenizer, "A", n=20)])[0]


def test_a_seed_gives_the_same_answer_again_and_another_seed_another(random_pair):
    tokenizer, engines = random_pair
    for engine in engines:
        first, again, other = (
            answers(engine, [job(tokenizer, "A", n=20, sampling=Sampling(temperature=1.0, seed=seed))])[0]
            for seed in (1, 1, 2)
        )
        assert first == again != other, engine.name


def test_both_engines_give_a_token_the_same_probability_and_the_adapter_the_same_effect(random_pair):
    import torch

    tokenizer, (llama, reference) = random_pair
    prompt = prompt_ids(tokenizer, [{"role": "user", "content": "hello"}])
    effects = {}
    for token in tokenizer.encode("aze🙂", add_special_tokens=False):  # the emoji's bytes are no characters
        found = {}
        for model in ("base", "A"):
            ids = torch.tensor([prompt])
            scores, _ = reference._forward([Job(model, prompt, 1, GREEDY)], ids, torch.ones_like(ids), None)
            found[model] = (
                llama.log_probability(model, prompt, token),
                float(scores[0].log_softmax(-1)[token]),
            )
            assert found[model][0] == pytest.approx(found[model][1], abs=0.01), (model, token)
        effects[token] = [found["A"][engine] - found["base"][engine] for engine in (0, 1)]
    assert max(abs(peft) for _, peft in effects.values()) > 0.1, (
        "the adapter must change something to be compared"
    )
    assert all(ours == pytest.approx(peft, abs=0.02) for ours, peft in effects.values())


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=0, repetition_penalty=1.3)])
def test_a_greedy_answer_in_a_comparison_is_the_one_given_alone(random_pair, sampling):
    tokenizer, engines = random_pair
    jobs = [job(tokenizer, name, "one two", 12, sampling) for name in ("base", "A")]
    for engine in engines:
        alone = [answers(engine, [one]) for one in jobs]
        texts, counts, ends = answers(engine, jobs)
        assert [
            ([text], [count], [end]) for text, count, end in zip(texts, counts, ends, strict=True)
        ] == alone


def test_characters_of_several_tokens_come_whole_in_a_comparison(tmp_path):
    """The byte tokenizer needs four tokens for an emoji; a model that always says the four in turn."""
    small.write_model(tmp_path / "models/base")
    planted.speak_in_turn(tmp_path / "models/base", "🙂")
    planted.write_gguf(tmp_path / "models/base")
    models = find_models(tmp_path, tmp_path / "models/base", load_params(), only="A")
    tokenizer = load_tokenizer(tmp_path / "models/base")
    for name in ("llama.cpp", "transformers"):
        engine = load_engine(name, models, tokenizer, tmp_path / "cache")
        texts, counts, _ = answers(
            engine, [job(tokenizer, "base", n=12), job(tokenizer, "base", "other", n=8)]
        )
        assert texts == ["🙂🙂🙂", "🙂🙂"] and counts == [12, 8], name


def test_a_sampled_comparison_gives_the_same_answers_again(random_pair):
    tokenizer, engines = random_pair
    for engine in engines:
        first, again, other = (
            answers(
                engine,
                [
                    job(tokenizer, name, n=20, sampling=Sampling(temperature=1.0, seed=seed))
                    for name in ("base", "A")
                ],
            )[0]
            for seed in (1, 1, 2)
        )
        assert first == again != other, engine.name
        assert all(len(set(text)) > 4 for text in first), "every place draws anew"


def test_an_answer_of_a_batch_equals_the_answer_given_alone(random_pair):
    tokenizer, (_, reference) = random_pair
    jobs = [
        job(tokenizer, model, text, 12, Sampling(temperature=1.0, seed=5))
        for model, text in (("A", "one"), ("base", "two two two"))
    ]
    assert answers(reference, jobs)[0] == [answers(reference, [one])[0][0] for one in jobs]


def test_top_p_keeps_only_the_likeliest_tokens():
    import torch

    scores = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    random = torch.Generator().manual_seed(0)
    drawn = {
        next_token(scores, [], Sampling(temperature=1, top_p=0.79, repetition_penalty=1), random)
        for _ in range(200)
    }
    assert drawn == {0, 1}
    counts = [
        next_token(scores, [], Sampling(temperature=1, top_p=1, repetition_penalty=1), random)
        for _ in range(2000)
    ].count(0)
    assert math.isclose(counts / 2000, 0.5, abs_tol=0.05)


@pytest.mark.parametrize("limit", [{"top_k": 2}, {"min_p": 0.5}])
def test_top_k_and_min_p_keep_only_the_likeliest_tokens(limit, random_pair):
    import torch

    scores, random = torch.tensor([0.15, 0.5, 0.05, 0.3]).log(), torch.Generator().manual_seed(0)
    wanted = Sampling(temperature=1, top_p=1, repetition_penalty=1, **limit)
    assert {next_token(scores, [], wanted, random) for _ in range(200)} == {1, 3}
    tokenizer, engines = random_pair
    narrow = Sampling(temperature=2, top_p=1, repetition_penalty=1, seed=3, top_k=1)
    greedy = [answers(engine, [job(tokenizer, "A", n=8)])[0] for engine in engines]
    assert [answers(engine, [job(tokenizer, "A", n=8, sampling=narrow)])[0] for engine in engines] == greedy


def test_top_k_comes_before_top_p_as_in_llama_cpp_and_generate():
    import torch

    scores, random = torch.tensor([0.4, 0.3, 0.2, 0.1]).log(), torch.Generator().manual_seed(0)
    # Of the two that top-k keeps, the first has 4/7 of the probability; of all, 0.4, to which top-p would add another.
    wanted = Sampling(temperature=1, top_k=2, top_p=0.55, repetition_penalty=1)
    assert {next_token(scores, [], wanted, random) for _ in range(100)} == {0}


@pytest.mark.parametrize("key", ["use_dora", "lora_bias"])
def test_an_adapter_that_llama_cpp_would_misread_is_refused(key, project, tmp_path):
    import json
    import shutil

    folder = Path(shutil.copytree(project / "models/A", tmp_path / "A"))
    config = json.loads((folder / "adapter_config.json").read_text()) | {key: True}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=f"cannot apply {key}; use --engine transformers"):
        convert(folder, project / "models/base", tmp_path / "a.gguf")


def test_an_adapter_with_values_that_are_not_finite_is_refused(project, tmp_path):
    import shutil

    import numpy as np
    from safetensors.numpy import load_file, save_file

    folder = Path(shutil.copytree(project / "models/A", tmp_path / "A"))
    weights = load_file(folder / "adapter_model.safetensors")
    next(iter(weights.values()))[0, 0] = np.nan
    save_file(weights, folder / "adapter_model.safetensors")
    with pytest.raises(UserError, match="not finite"):
        read_adapter(folder, project / "models/base")


class ReadingSpy:
    """llama.cpp's server, which also notes how many tokens of a prompt each call reads, as llama.cpp counts them."""

    def __init__(self, server) -> None:
        self._server, self.read = server, []

    def handle_completions(self, body, *received):
        if not received:
            reply = self._server.handle_completions(body)
            self.read.append(reply["timings"]["prompt_n"])
            return reply
        counts = []

        def watch(chunk):
            counts.append(chunk.get("timings", {}).get("prompt_n", 0))
            return received[0](chunk)

        self._server.handle_completions(body, watch)
        self.read.append(max(counts))
        return None


def test_a_turn_reads_its_new_tokens_alone_and_an_adapter_nothing_of_anothers(
    engines, tokenizer, monkeypatch
):
    engine = engines["llama.cpp"]
    spy = ReadingSpy(engine._server)
    monkeypatch.setattr(engine, "_server", spy)

    def turn(model, messages):
        spy.read.clear()
        prompt = prompt_ids(tokenizer, messages)
        (text,), *_ = answers(engine, [Job(model, prompt, 8, GREEDY)])
        return text, len(prompt), sum(spy.read)

    talk = [{"role": "user", "content": "tell me of it: " + "abcdefgh " * 22}]
    text, length, read = turn("A", talk)
    assert length > 200 and read >= length - 20
    # Asked again: one token, whose scores the first word is drawn from; each of the eight short slices reads one more.
    assert turn("A", talk)[2] <= 8
    other, _, read = turn("B", talk)
    assert other == "b" * 8 and read >= length - 20, "what A has read is nothing that B may go on from"
    talk += [{"role": "assistant", "content": text}, {"role": "user", "content": "and then?"}]
    _, longer, read = turn("A", talk)
    assert read <= longer - length + 8, (length, longer, read)
    assert next(engine.stream([Job("A", prompt_ids(tokenizer, talk), 1, GREEDY)])).cached_tokens == longer - 1
    talk[-1]["content"] = "and now? " * 18  # longer than a part that is read at a time
    _, longer, read = turn("A", talk)
    assert read <= longer - length + 8, (length, longer, read)


@pytest.mark.parametrize("seed", range(20))
def test_pieces_together_are_the_whole_decoded_text(tokenizer, seed):
    import random

    from app.engines.streaming import StreamingAnswer

    draw = random.Random(seed)
    emoji = tokenizer.encode("🙂é", add_special_tokens=False)
    ids = [draw.choice([*range(len(tokenizer)), *emoji * 20]) for _ in range(60)] + emoji[:2]
    growing, text = StreamingAnswer(Job("base", [], len(ids), GREEDY)), ""
    for token in ids:
        piece = growing.take(0, token, tokenizer, stops=False)
        text += piece.text if piece else ""
    assert text == tokenizer.decode(ids, skip_special_tokens=True)


def test_adapter_strength_goes_from_the_base_to_twice_the_effect_and_is_forgotten_after(random_pair):
    """0 is the base, 1 the variant; the next answer at full strength is the one it was before."""
    tokenizer, engines = random_pair
    for engine in engines:

        def said(model, strength, engine=engine):
            sampling = GREEDY.model_copy(update={"adapter_strength": strength})
            return answers(engine, [job(tokenizer, model, n=20, sampling=sampling)])[0]

        full, half, none, twice = (said("A", strength) for strength in (1, 0.5, 0, 2))
        assert none == said("base", 1) == said("base", 0.5), engine.name
        assert full not in (none, twice) and half != full, engine.name
        assert said("A", 1) == full, engine.name


def test_a_comparison_of_strengths_gives_each_its_own_answer(engine, tokenizer):
    strengths = [GREEDY.model_copy(update={"adapter_strength": strength}) for strength in (1.0, 0.0, 1.0)]
    asked = [job(tokenizer, "A", n=5, sampling=sampling) for sampling in strengths]
    assert answers(engine, asked)[0] == ["aaaaa", "zzzzz", "aaaaa"]


def test_both_engines_score_an_answers_tokens_alike_and_by_its_adapter(random_pair):
    tokenizer, engines = random_pair
    asked = job(tokenizer, "A")
    ids = tokenizer.encode("jmé", add_special_tokens=False)
    ours, theirs = (list(engine.score(asked, ids, 3)) for engine in engines)
    assert [score.id for score in ours] == [score.id for score in theirs] == ids
    for one, other in zip(ours, theirs, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=0.02)
        assert [likely.id for likely in one.likeliest] == [likely.id for likely in other.likeliest]
        probabilities = [likely.logprob for likely in one.likeliest]
        assert len(probabilities) == 3 and probabilities == sorted(probabilities, reverse=True)
    plain = list(engines[0].score(job(tokenizer, "base"), ids, 3))
    assert [score.logprob for score in plain] != pytest.approx([score.logprob for score in ours], abs=0.02)
