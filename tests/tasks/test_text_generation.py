"""Packing loses nothing and mixes nothing; what is encoded comes back; our decoding is transformers' own."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenizers import Tokenizer, decoders
from transformers import PreTrainedTokenizerFast

from bigmodel import models, pipeline
from bigmodel.data import encoding, files
from bigmodel.data.prepare import open_prepared
from bigmodel.data.record import Bad, ReadOptions
from bigmodel.data.sources import BLOCK_SIZE, LONGEST_BLOCK, open_rows
from bigmodel.errors import ConfigError, DataError
from bigmodel.evaluation import ngrams
from bigmodel.experiment import Experiment, TokenizerConfig
from bigmodel.models.init import initialize
from bigmodel.predictor import Predictor
from bigmodel.tasks import exact_tokenizer, text_generation
from bigmodel.tasks.base import BLOCK, Refused
from bigmodel.tasks.decoding import Decoder, complete
from bigmodel.tasks.packing import Packed
from bigmodel.tasks.texts import IGNORE_INDEX
from bigmodel.training.fit import fit

TEXT = "The cat sat on the mat.\n\n\tIt said: \u00ab na\u00efve \u597d \U0001f600 \u00bb  \n" * 20
MODELS = {
    "transformer": {"type": "transformer", "hidden_size": 32, "num_hidden_layers": 2},
    "lstm": {"type": "lstm_lm", "hidden_size": 24, "embedding_size": 16, "num_hidden_layers": 2},
    "gru": {"type": "gru_lm", "hidden_size": 24, "embedding_size": 16},
    "gpt2": {"type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2},
    "mamba": {"type": "mamba", "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4},
}


def made(name):
    data = {"train": "unused", "max_length": 64}
    asked = Experiment.model_validate({"task": "text-generation", "data": data, "model": MODELS[name]})
    processor, learnt = text_generation.fit(lambda: [{"text": TEXT, "block": -1}], asked)
    model = models.build(asked.model, learnt, asked.task)
    initialize(model, asked.init, 0)
    return model.eval(), processor, asked


@pytest.fixture(scope="module", params=MODELS)
def decoder(request):
    return made(request.param)


@pytest.mark.parametrize("kind", ["char", "byte", "bpe"])
@settings(max_examples=60)
@given(text=st.text(alphabet=sorted(set(TEXT))))
def test_what_is_encoded_comes_back_to_the_last_blank(kind, text):
    processor = exact_tokenizer.train([TEXT], kind, TokenizerConfig(vocab_size=400), 64)
    ids = exact_tokenizer.Encoder(processor)(text)
    assert processor.decode(ids) == text
    assert ids.tolist() == processor(text).input_ids  # what a stranger makes of it


@settings(max_examples=60)
@given(text=st.text())
def test_any_text_comes_back_from_bytes(text):
    processor = exact_tokenizer.train([TEXT], "byte", TokenizerConfig(), 64)
    assert processor.decode(exact_tokenizer.Encoder(processor)(text)) == text


def write(folder, text):
    (folder / "a.txt").write_bytes(text.encode())
    names, rows = open_rows(str(folder / "a.txt"), ReadOptions(separator="----"), ["text", BLOCK])
    return list(rows)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_the_blocks_of_a_file_are_its_text(tmp_path, end):
    lines = [f"line {n} of many" + end for n in range(2000)]
    lines[700] = "x" * (2 * LONGEST_BLOCK) + end
    lines[1200] = "----" + end
    rows = write(tmp_path, "".join(lines))
    assert "".join(row.values["text"] for row in rows) == "".join(lines[:1200] + lines[1201:])
    blocks = [row.values[BLOCK] for row in rows]
    assert [row.line for row in rows if row.values[BLOCK] & 1] == [1, 1202]
    assert sum(block >> 1 & 1 for block in blocks) == 2
    follows = [after >> 2 == (before >> 2) + 1 for before, after in zip(blocks, blocks[1:], strict=False)]
    assert follows.count(False) == 1
    assert all(len(row.values["text"]) <= LONGEST_BLOCK for row in rows)
    assert np.median([len(row.values["text"]) for row in rows]) < BLOCK_SIZE + 100


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_line_longer_than_any_is_cut_as_a_shorter_one_is(tmp_path, monkeypatch, end):
    lines = [f"line {n} of many" + end for n in range(300)]
    lines[50] = "caf\u00e9 " * LONGEST_BLOCK + end
    lines[51] = "----" + end
    lines[100] = "x" * (3 * LONGEST_BLOCK) + "----" + end
    lines[-1] = "y" * (2 * LONGEST_BLOCK + 5)
    whole = write(tmp_path, "".join(lines))
    monkeypatch.setattr(encoding, "LONGEST_LINE", LONGEST_BLOCK)
    monkeypatch.setattr(files, "BLOCK", 5000)
    assert write(tmp_path, "".join(lines)) == whole


def test_a_text_in_one_line_of_any_length_is_read_and_what_is_no_text_of_it_refused(tmp_path):
    part = b"anarchism originated as a term of abuse " * 26214
    with (tmp_path / "text8.txt").open("wb") as file:
        for i in range(80):
            file.write(part if i != 70 else b"\xff" + part[1:])
    digest, num_characters, bad = hashlib.sha256(), 0, []
    for row in open_rows(str(tmp_path / "text8.txt"), ReadOptions(), ["text", BLOCK])[1]:
        if isinstance(row, Bad):
            bad.append(row)
            continue
        num_characters += len(row.values["text"])
        digest.update(row.values["text"].encode())
    (refused,) = bad
    place = 70 * len(part) // LONGEST_BLOCK * LONGEST_BLOCK
    written = part * 70 + b"\xff" + part[1:] + part * 9
    kept = written[:place] + written[place + LONGEST_BLOCK :]
    assert (refused.line, num_characters) == (1, len(kept))
    assert digest.hexdigest() == hashlib.sha256(kept).hexdigest()


def test_a_line_that_is_no_text_is_refused_and_what_follows_continues_nothing(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\n" * 50 + b"t\xc3\xa9\n" * 40 + b"b\xff\xfe\n" + b"two\n" * 50)
    rows = list(open_rows(str(tmp_path / "a.txt"), ReadOptions(), ["text", BLOCK])[1])
    (bad,) = [row for row in rows if isinstance(row, Bad)]
    assert bad.line == 91
    first, last = [row.values[BLOCK] for row in rows if not isinstance(row, Bad)]
    assert last >> 2 != (first >> 2) + 1 and (first & 3, last & 3) == (1, 2)


@settings(max_examples=80)
@given(st.lists(st.integers(1, 12), min_size=2, max_size=12), st.integers(1, 9), st.randoms(use_true_random=False))
def test_every_token_but_the_first_of_a_document_is_predicted_once(sizes, window, random):
    tokens = np.arange(1, sum(sizes) + 1, dtype=np.int32)
    ends = np.cumsum([0, *sizes])
    blocks = np.array([random.choice([n << 2, n << 2 | 1, -1, (n * 10) << 2]) for n in range(len(sizes))])
    cut = random.randrange(1, len(sizes))
    parts = [(tokens[: ends[cut]], ends[: cut + 1]), (tokens[ends[cut] :], ends[cut:] - ends[cut])]
    packed = Packed(parts, blocks, window)
    batch = text_generation.collate(packed.take(range(len(packed))), type("P", (), {"pad_token_id": 0}))
    predicted = batch["targets"][batch["targets"] != IGNORE_INDEX].tolist()
    continues = {
        int(ends[i]) + 1
        for i in range(1, len(sizes))
        if blocks[i] >> 2 == (blocks[i - 1] >> 2) + 1 and not blocks[i] & 1
    }
    firsts = {int(end) + 1 for end in ends[:-1]} - continues
    assert sorted(predicted) == [token for token in tokens.tolist() if token not in firsts]
    assert packed.lengths.sum() == len(tokens) - 1


@settings(max_examples=80)
@given(st.lists(st.integers(1, 12), min_size=2, max_size=12), st.integers(1, 9), st.integers(1, 11))
def test_the_blocks_that_a_window_shows_are_known(sizes, window, cut):
    owners = np.repeat(np.arange(len(sizes)), sizes)
    ends = np.cumsum([0, *sizes])
    cut = min(cut, len(sizes) - 1)
    parts = [(owners[: ends[cut]], ends[: cut + 1]), (owners[ends[cut] :], ends[cut:] - ends[cut])]
    packed = Packed(parts, np.full(len(sizes), -1), window)
    shown = [sorted(set(owners[:-1][i * window : (i + 1) * window])) for i in range(len(packed))]
    assert [packed.rows([i]).tolist() for i in range(len(packed))] == shown
    assert packed.rows(range(len(packed))).tolist() == sorted(set(owners[:-1]))


def test_documents_in_one_window_do_not_see_each_other(decoder):
    model, processor, experiment = decoder
    texts = [np.array(processor(TEXT[a:b]).input_ids, np.int32) for a, b in ((0, 9), (30, 47), (5, 28))]
    ends = np.cumsum([0, *map(len, texts)])
    packed = Packed([(np.concatenate(texts), ends)], np.array([-1, -1, -1]), 64)
    batch = text_generation.collate(packed.take([0]), processor)
    with torch.no_grad():
        together = text_generation.loss(model, batch, experiment)
        alone = sum(
            torch.nn.functional.cross_entropy(
                model(input_ids=torch.tensor([text[:-1].tolist()])).logits[0].float(),
                torch.tensor(text[1:].tolist()),
                reduction="sum",
            )
            for text in texts
        )
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def prompts(processor):
    return [{"input_ids": processor(TEXT[n : n + 3 + 5 * n]).input_ids} for n in range(6)]


def test_greedy_answers_are_those_of_transformers_alone_and_together(decoder):
    model, processor, _ = decoder
    asked = [prompt | {"options": {"max_new_tokens": 24}} for prompt in prompts(processor)]
    together = complete(model, processor, asked)
    assert together == [complete(model, processor, [one])[0] for one in asked]
    for one, answer in zip(asked, together, strict=True):
        ids = torch.tensor([one["input_ids"]])
        found = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False)
        expected = processor.decode(found[0, ids.shape[1] :], skip_special_tokens=True)
        assert answer["text"] == expected


@pytest.mark.parametrize("name", ["transformer", "lstm", "gru"])
def test_generate_with_left_padding_is_generate_without(name):
    model, processor, _ = made(name)
    texts = [TEXT[n : n + 3 + 5 * n] for n in range(5)]
    batch = processor(texts, return_tensors="pt", padding=True)
    together = model.generate(**batch, max_new_tokens=16, do_sample=False)[:, batch.input_ids.shape[1] :]
    for text, found in zip(texts, together, strict=True):
        alone = processor([text], return_tensors="pt")
        expected = model.generate(**alone, max_new_tokens=16, do_sample=False)[0, alone.input_ids.shape[1] :]
        assert processor.decode(found, skip_special_tokens=True) == processor.decode(expected, skip_special_tokens=True)


def test_what_is_drawn_depends_on_the_seed_and_on_no_neighbour(decoder):
    model, processor, _ = decoder
    options = {"max_new_tokens": 100, "temperature": 1.2, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.1}
    asked = [prompt | {"options": options | {"seed": n}} for n, prompt in enumerate(prompts(processor))]
    together = complete(model, processor, asked)
    assert together == [complete(model, processor, [one])[0] for one in asked]
    other = complete(model, processor, [asked[0] | {"options": options | {"seed": 99}}])[0]
    assert other["text"] != together[0]["text"]


def test_a_stop_string_ends_the_text_before_it_and_pieces_never_take_back(decoder):
    model, processor, _ = decoder
    sample = prompts(processor)[3]
    (whole,) = complete(model, processor, [sample | {"options": {"max_new_tokens": 30, "temperature": 1.0}}])
    stop = whole["text"][7:10]
    rows = Decoder(model, processor, 2)
    rows.join("a", sample | {"options": {"max_new_tokens": 30, "temperature": 1.0, "stop": [stop]}})
    said, answer = "", None
    while answer is None:
        for piece in rows.step():
            said, answer = said + piece.text, piece.answer
    assert answer["text"] == said == whole["text"][: whole["text"].index(stop)]
    assert answer["finish_reason"] == "stop" and rows.num_rows == 0


@pytest.mark.parametrize("cold", [{"temperature": 5e-324}, {"temperature": 1e-9}, {"temperature": 1.0, "top_k": 1}])
def test_the_coldest_draw_is_the_likeliest_token(cold):
    model, processor, _ = made("gru")
    greedy, drawn = ([one | {"options": options} for one in prompts(processor)] for options in ({}, cold))
    assert complete(model, processor, drawn) == complete(model, processor, greedy)


ODD = [
    ({"text": "The \U0001f600 unknown \u597d"}, None),
    ({"text": ""}, None),
    ({"text": "\u597d" * 500, "max_new_tokens": 3}, None),
    ({"text": "x", "temperature": 0, "stop": []}, None),
    ({"text": "<|end|>x", "repetition_penalty": 0.01}, None),
    ({"text": "x", "repetition_penalty": 1e-300}, "repetition_penalty"),
    ({"text": "x", "top_p": 0}, "top_p"),
    ({"text": "x", "seed": -1}, "seed"),
    ({"text": "x", "max_new_tokens": 1_000_000}, "max_new_tokens"),
    ({"text": "x", "stop": [""]}, "stop"),
    ({"text": "\ud800"}, "text|surrogate"),
]


@pytest.mark.parametrize(("fields", "refused"), ODD, ids=str)
def test_an_odd_prompt_is_answered_or_refused_by_name(fields, refused):
    model, processor, _ = made("gru")
    request = text_generation.request(processor)
    if refused:
        with pytest.raises((ValidationError, Refused), match=refused):
            text_generation.asked(dict(request.model_validate(fields)), processor)
        return
    row = text_generation.asked(dict(request.model_validate(fields)), processor)
    (answer,) = Predictor("text-generation", model, processor, {}).predict([row])
    assert answer["tokens"] <= fields.get("max_new_tokens", 64)


def test_rows_join_and_leave_without_moving_the_others(decoder):
    model, processor, _ = decoder
    asked = [prompt | {"options": {"max_new_tokens": 12 + 3 * n}} for n, prompt in enumerate(prompts(processor))]
    alone = complete(model, processor, asked)
    rows, found, step = Decoder(model, processor, 4), {}, 0
    waiting = list(enumerate(asked))
    rows.join("gone", {"input_ids": asked[0]["input_ids"]})
    while len(found) < len(asked):
        if step == 3:
            rows.leave("gone")
        if waiting and rows.num_rows < rows.places:
            rows.join(*waiting.pop(0))
        found |= {piece.key: piece.answer for piece in rows.step() if piece.answer and piece.key != "gone"}
        step += 1
    assert [found[n] for n in range(len(asked))] == alone


def test_judged_in_windows_the_first_tokens_are_those_of_the_whole(decoder):
    """As long as the block fits a window, its nats are those of one pass; each longer one counts every target once."""
    model, processor, _ = decoder
    rows = [{"text": TEXT[:40], "block": -1}, {"text": TEXT[:300], "block": -1}]
    samples = text_generation.encode(rows, processor, {})
    with torch.no_grad():
        short, long = text_generation.judge(model, text_generation.collate(samples, processor), processor)
        ids = torch.tensor([samples[0]["input_ids"].tolist()])
        logits = model(input_ids=ids[:, :-1]).logits[0].float()
        expected = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
    assert short["nats"] == pytest.approx(expected, rel=1e-4)
    assert (long["num_targets"], long["num_bytes"]) == (len(samples[1]["input_ids"]) - 1, len(TEXT[:300].encode()))


def with_byte_fallback():
    """A tokenizer as SentencePiece makes them, of the letters a to e."""
    vocab = {token: i for i, token in enumerate(["<unk>", *"abcde", *(f"<0x{byte:02X}>" for byte in range(256))])}
    made = Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=made)


@pytest.mark.parametrize(
    ("kind", "text", "first"),
    [
        ("char", "\u597d cat", 3), ("char", "\u03a9 cat", 2), ("char", "cat", 1),  # the second is not in the vocabulary
        ("byte", "\u597d cat", 1), ("byte", "cat", 1), ("bpe", "\u03a9 cat", 1), ("bpe", " sat on", 4),
        ("fallback", "\u597d abc", 1), ("fallback", "abc", 1),
    ],
)  # fmt: skip
def test_the_bytes_of_a_block_are_those_of_the_tokens_that_are_predicted(kind, text, first):
    """Of a block that begins no document the first token, of whole characters or not, is given."""
    if kind == "fallback":
        processor = with_byte_fallback()
    else:
        processor = exact_tokenizer.train([TEXT], kind, TokenizerConfig(vocab_size=400), 64)
    (sample,) = text_generation.encode([{"text": text, "block": 0}], processor, {})
    assert sample["num_bytes"] == len(text.encode()) - first


def test_ngrams_agree_with_counting_by_hand():
    nats, count, _ = ngrams.nats(["abab"], ["ab"], order=2)
    a = (2 + 2 / 3) / (4 + 2)  # of 4 characters 2 are a; 2 kinds; 3 places in the alphabet
    b = (2 + 1 * a) / (2 + 1)  # after a always b
    assert (nats, count) == (pytest.approx(-np.log(a) - np.log(b)), 2)


@pytest.mark.parametrize("taught", ["", "a", "abc"])
def test_ngrams_bear_a_training_text_shorter_than_they_are(taught):
    nats, count, counted = ngrams.nats([taught], ["abcabcabc"])
    assert np.isfinite(nats) and (count, counted) == (9, len(taught))


def test_ngrams_have_the_published_loss_on_shakespeare(data_folder):
    text = (data_folder / "lm_tinyshakespeare" / "input.txt").read_text("utf-8")
    cut = int(0.9 * len(text))
    nats, count, _ = ngrams.nats([text[:cut]], [text[cut:]])
    assert nats / count == pytest.approx(1.6981, abs=1e-4)


# ---- chats: by the tokenizer's own template where it has one

TEMPLATE = (
    "{% for m in messages %}{% if m.role not in ('user', 'assistant') %}{{ raise_exception('no role ' + m.role) }}"
    "{% endif %}<|im|>{{ m.role }}:{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im|>assistant:{% endif %}"
)
CHAT = [{"role": "user", "content": "The cat?"}, {"role": "assistant", "content": "sat on <|end|> the mat."}]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """found(template): a tiny pretrained model of chats, as one finds them."""

    def make(template):
        folder = tmp_path_factory.mktemp("found")
        model, _, _ = made("gpt2")
        processor = exact_tokenizer.train([], "byte", TokenizerConfig(), 64)
        processor.add_special_tokens({"additional_special_tokens": ["<|im|>"]})
        processor.chat_template = template
        model.resize_token_embeddings(len(processor))
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        return folder

    return make


def trained_on_chats(folder, tmp_path):
    lines = [json.dumps({"text": [{"role": "user", "content": f"The cat {n}?"}, CHAT[1]]}) for n in range(40)]
    (tmp_path / "chats.jsonl").write_text("\n".join(lines))
    tree = {
        "task": "text-generation",
        "data": {"train": str(tmp_path / "chats.jsonl"), "max_length": 64, "split": {"valid": 0.2, "test": 0}},
        "model": {"pretrained": str(folder)} if folder else MODELS["gru"],
        "train": {"epochs": 1, "threads": 1, "precision": "fp32"},
        "output": str(tmp_path / "run"),
    }
    return Experiment.model_validate(tree)


def test_the_command_answers_texts_and_files_with_what_a_request_may_have(found, tmp_path):
    run = fit(trained_on_chats(found(None), tmp_path))
    predictor = Predictor.load(run.model)
    request = text_generation.request(predictor.processor)
    asks = {"max_new_tokens": 5, "temperature": 1.5, "seed": 3, "stop": ["."]}
    asked = [dict(request.model_validate({"text": text, **asks})) for text in ("The cat", "On the")]
    wanted = predictor.predict([text_generation.asked(fields, predictor.processor) for fields in asked])
    given = [f"{field}={json.dumps(value)}" for field, value in asks.items()]
    pipeline.predict(run.model, [], tmp_path / "texts.jsonl", ["The cat", "On the"], asks=given)
    (tmp_path / "asked.jsonl").write_text('{"m": "The cat"}\n{"m": "On the"}\n')
    pipeline.predict(
        run.model, [str(tmp_path / "asked.jsonl")], tmp_path / "rows.jsonl", changes=["data.text=m"], asks=given
    )
    of_texts, of_rows = (
        [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        for name in ("texts.jsonl", "rows.jsonl")
    )
    assert of_texts == wanted
    assert [{name: row[name] for name in answer} for row, answer in zip(of_rows, wanted, strict=True)] == wanted
    for ask, words in {
        "temprature=1": "--ask temprature=1: .* Did you mean 'temperature'?",
        "text=a": "--ask text=a: wanted is",
        "seed": "--ask seed: wanted is .* as FIELD=VALUE: max_new_tokens, repetition_penalty, seed, stop",
        "top_p=2": "--ask top_p is 2, but must be at most 1",
        "max_new_tokens=many": "--ask max_new_tokens is 'many', but must be a whole number",
    }.items():
        with pytest.raises(ConfigError, match=words):
            pipeline.predict(run.model, [], None, ["The cat"], asks=[ask])


def test_chats_are_written_by_the_tokenizers_own_template_in_training_and_serving(found, tmp_path):
    run = fit(trained_on_chats(found(TEMPLATE), tmp_path))
    predictor = Predictor.load(run.model)
    processor = predictor.processor
    assert processor.chat_template == TEMPLATE
    special = processor.convert_tokens_to_ids(["<|im|>", "<|end|>"])
    for sample in open_prepared(Path(run.info["prepared"])).samples("train").take([0, 1]):
        ids = sample["input_ids"].tolist()
        assert processor.decode(ids).startswith("<|im|>user:The cat ")
        assert [token for token in ids if token in special] == special * 2, "what a message spells is text"
    request = text_generation.request(processor)
    row = text_generation.asked(dict(request.model_validate({"text": CHAT, "max_new_tokens": 3})), processor)
    (sample,) = text_generation.encode([row], processor, {})
    prompt = processor.decode(sample["input_ids"])
    assert prompt == "<|im|>user:The cat?<|end|><|im|>assistant:sat on <|end|> the mat.<|end|><|im|>assistant:"
    assert predictor.predict([row])[0]["tokens"] <= 3
    (plain,) = text_generation.encode([{"text": "<|im|>"}], processor, {})
    assert special[0] not in plain["input_ids"], "a prompt that spells a special token is text, also after a chat"


def test_without_a_template_chats_are_written_by_ours(tmp_path):
    run = fit(trained_on_chats(None, tmp_path))
    predictor = Predictor.load(run.model)
    request = text_generation.request(predictor.processor)
    row = text_generation.asked(dict(request.model_validate({"text": CHAT[:1]})), predictor.processor)
    assert row["text"] == "<user>\nThe cat?\n\n<assistant>\n"
    (sample,) = open_prepared(Path(run.info["prepared"])).samples("train").take([0])
    assert predictor.processor.decode(sample["input_ids"]).startswith("<|end|><user>\nThe cat ")


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ ().__class__.__base__.__subclasses__() }}", "access to attribute '__class__' of 'tuple' object is unsafe"),
        ("{{ messages.append(1) }}", "attribute 'append' of 'list' object is unsafe. The"),
        ("{{ messages[0]['content'].format.__globals__.x }}", "__globals__' of .* is unsafe"),
        ("{% for", "unexpected 'end of template'"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
    ],
)
def test_a_template_runs_in_a_sandbox_and_what_it_refuses_is_one_message(found, tmp_path, template, words):
    with pytest.raises(DataError, match=rf"chats.jsonl:\d+: column 'text': the model's chat template .*{words}"):
        fit(trained_on_chats(found(template), tmp_path))


@pytest.mark.parametrize("text", [[], [{"role": "user"}], [{"role": "user", "content": "a", "name": "b"}], 3])
def test_what_is_no_chat_is_refused(text):
    with pytest.raises(ValidationError, match="text"):
        text_generation.request(None).model_validate({"text": text})
