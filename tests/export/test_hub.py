"""What would be sent to the Hub, that PEFT loads it, what is never sent, and a push to a stand-in of the Hub."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import peft
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from tests.export.adapters_of_all_kinds import copied, saved, settings
from tests.small_llama import small
from utils.course.model_card import write_card
from utils.evaluate.report import Evaluation, Reply
from utils.export.errors import ExportError
from utils.export.hub import hub_dry_run, push, roll_back
from utils.export.hub_card import Licences
from utils.train.own_data import DataFacts
from utils.train.run_folder import TrainedOn

LICENCES = Licences("mit", "llama3.2", "cc-by-4.0", ("me/pirates",))


@pytest.fixture
def folder(tmp_path) -> Path:
    return saved("plain", tmp_path / "mine", name="owner/base")


def test_it_holds_what_is_listed_and_peft_loads_it(folder, tmp_path):
    (folder / "tokenizer.json").write_text("{}")
    ready = hub_dry_run(folder, "me/pirate", tmp_path / "send", licences=LICENCES, tag="v1")
    assert ready.private and ready.revision == "main"
    names = ["README.md", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json"]
    assert [file.name for file in ready.files] == names == sorted(p.name for p in (tmp_path / "send").iterdir())
    assert all(file.size == (tmp_path / "send" / file.name).stat().st_size for file in ready.files)
    ids = torch.arange(8)[None]
    with torch.no_grad():
        a, b = (peft.PeftModel.from_pretrained(small(), f).eval()(ids).logits for f in (folder, tmp_path / "send"))
    assert torch.equal(a, b)
    said = str(ready)
    assert said.startswith("https://huggingface.co/me/pirate (private), branch main, tagged v1\n")
    assert f"{(folder / 'adapter_model.safetensors').stat().st_size:,} bytes  adapter_model.safetensors" in said


def test_a_training_runs_leftovers_stay(folder, tmp_path):
    for name in ("optimizer.pt", "training_args.bin", "trainer_state.json", "evaluation.json", ".env", "notes.txt"):
        (folder / name).write_text("x")
    (folder / "checkpoint-10").mkdir()
    ready = hub_dry_run(folder, "me/pirate", tmp_path / "send")
    stay = {"optimizer.pt", "training_args.bin", "trainer_state.json", "evaluation.json", ".env", "notes.txt"}
    assert ready.left_out.keys() == stay | {"checkpoint-10"}
    assert "left out: training_args.bin (a pickle, which can run code where it is loaded)" in str(ready)
    more = hub_dry_run(folder, "me/pirate", tmp_path / "more", also=["evaluation.json", "notes.txt"])
    assert {"evaluation.json", "notes.txt"} <= {file.name for file in more.files}
    for never in ("optimizer.pt", ".env"):
        with pytest.raises(ExportError, match=rf"{never} isn't sent: "):
            hub_dry_run(folder, "me/pirate", tmp_path / "no", also=[never])
    for absent in ("none.txt", "../mine/notes.txt"):
        with pytest.raises(ExportError, match="holds no file"):
            hub_dry_run(folder, "me/pirate", tmp_path / "no", also=[absent])
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    "name, text, what",
    [
        ("README.md", "use hf_" + "a" * 34, "a token of the Hub"),
        ("tokenizer_config.json", '{"k": "sk-' + "b" * 24 + '"}', "an API key"),
        ("README.md", "AKIA" + "C" * 16, "an AWS key"),
        ("NOTICE", "-----BEGIN OPENSSH PRIVATE KEY-----", "a private key"),
        ("tokenizer_config.json", '{"name_or_path": "/home/anna/models/base"}', "a folder of this machine"),
        ("README.md", r"from C:\Users\anna\base", "a folder of this machine"),
    ],
)
def test_secrets_stop_it_by_their_line_and_arent_repeated(folder, tmp_path, name, text, what):
    (folder / name).write_text(f"first line\n{text}\n")
    with pytest.raises(ExportError, match=rf"{name}, line \d+, holds what looks like {what}") as caught:
        hub_dry_run(folder, "me/pirate", tmp_path / "send")
    assert text not in str(caught.value) and not (tmp_path / "send").exists()


def test_a_token_in_the_weights_header_is_found_too(folder, tmp_path):
    """safetensors keeps free-form text beside the tensors, such as the run's address."""
    weights = folder / "adapter_model.safetensors"
    save_file(load_file(weights), weights, metadata={"format": "pt", "run": "sk-" + "b" * 24})
    with pytest.raises(ExportError, match=r"adapter_model\.safetensors, line 1, holds what looks like an API key"):
        hub_dry_run(folder, "me/pirate", tmp_path / "send")


@pytest.mark.parametrize(
    "name",
    [".env", ".env.local", "prod.env", "key.pem", "id_ed25519", ".npmrc", "secrets.json", "my-service-account.json"],
)
def test_a_file_that_is_called_like_a_secret_is_never_sent(folder, tmp_path, name):
    (folder / name).write_text("x")
    assert hub_dry_run(folder, "me/pirate", tmp_path / "send").left_out[name] == "may hold a secret"
    with pytest.raises(ExportError, match="isn't sent: may hold a secret"):
        hub_dry_run(folder, "me/pirate", tmp_path / "no", also=[name])


@pytest.mark.parametrize("base", ["/home/anna/base", r"C:\models\base", "./base", "~/base", "models\\base"])
def test_a_base_that_only_this_machine_has_is_refused_or_renamed(folder, tmp_path, base):
    settings(folder, base_model_name_or_path=base)
    with pytest.raises(ExportError, match=r"a folder of this machine.*pass what it is called.*base='OWNER/NAME'"):
        hub_dry_run(folder, "me/pirate", tmp_path / "send")
    hub_dry_run(folder, "me/pirate", tmp_path / "send", base="owner/base")
    sent = json.loads((tmp_path / "send" / "adapter_config.json").read_text())
    assert sent == json.loads((folder / "adapter_config.json").read_text()) | {"base_model_name_or_path": "owner/base"}


def test_a_base_by_a_relative_folder_that_is_there_is_refused_too(folder, tmp_path, monkeypatch):
    (tmp_path / "models" / "base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    settings(folder, base_model_name_or_path="models/base")
    with pytest.raises(ExportError, match="a folder of this machine"):
        hub_dry_run(folder, "me/pirate", tmp_path / "send")
    settings(folder, base_model_name_or_path=None)
    with pytest.raises(ExportError, match="nobody else can know the base"):
        hub_dry_run(folder, "me/pirate", tmp_path / "send")


def test_what_is_no_adapter_or_no_name_is_refused(folder, tmp_path):
    for wrong in ("pirate", "me/pi rate", "me/pirate/x", "-/x"):
        with pytest.raises(ExportError, match="repository"):
            hub_dry_run(folder, wrong, tmp_path / "send")
    with pytest.raises(ExportError, match="no branch or tag called 'v 1'"):
        hub_dry_run(folder, "me/pirate", tmp_path / "send", tag="v 1")
    share = copied(folder, tmp_path / "share", r=8)
    with pytest.raises(ValueError, match="one rank's share"):
        hub_dry_run(share, "me/pirate", tmp_path / "send")
    assert not (tmp_path / "send").exists()
    hub_dry_run(folder, "me/pirate", tmp_path / "send")
    with pytest.raises(FileExistsError):
        hub_dry_run(folder, "me/pirate", tmp_path / "send")


# ------------------------------------------------------------------------------------------------------------ the card


def written(folder: Path) -> None:
    """The card that a run of the capstone writes."""
    reply = Reply("Say hello.", "Arr!", "Arr!", 1, True)
    done = TrainedOn(100, 1000, 500, 0, 25, 2.0, 25, 25)
    facts = DataFacts("mine.jsonl", "0" * 64, 100, 1, 0, 0)
    results = Evaluation((reply,), 1.0, None), Evaluation((reply,), 0.5, None)
    write_card(folder, facts, done, {"rank": 4}, *results, profile="tiny", name="pirate")


def test_the_runs_card_keeps_its_words_and_gets_base_licences_and_data(folder, tmp_path):
    written(folder)
    before = ModelCard((folder / "README.md").read_text(encoding="utf-8"))
    ready = hub_dry_run(folder, "me/pirate", tmp_path / "send", licences=LICENCES)
    card = ModelCard((tmp_path / "send" / "README.md").read_text(encoding="utf-8"))
    data = card.data.to_dict()
    assert data["base_model"] == "owner/base" and data["base_model_relation"] == "adapter"
    assert data["license"] == "mit" and data["datasets"] == ["me/pirates"] and "lora" in data["tags"]
    assert data["model-index"] == before.data.to_dict()["model-index"], "the results stay"
    assert before.text.strip() in card.text
    assert card.text.rstrip().endswith("## Licences\n\n- adapter: mit\n- base: llama3.2\n- data: cc-by-4.0")
    assert ready.missing == ()
    again = hub_dry_run(tmp_path / "send", "me/pirate", tmp_path / "again", licences=LICENCES)
    assert again.files == ready.files, "a second time changes nothing"


def test_what_the_card_doesnt_say_is_said(folder, tmp_path):
    (folder / "README.md").unlink(missing_ok=True)
    missing = hub_dry_run(folder, "me/pirate", tmp_path / "send").missing
    assert missing == (
        "there is no card that says what it was trained on, and how well it does",
        "the licence of the adapter isn't said",
        "the licence of the base isn't said",
        "the licence of the data isn't said",
    )
    settings(folder, base_model_name_or_path="tiny-llama")
    assert "is no model of the Hub" in str(hub_dry_run(folder, "me/pirate", tmp_path / "send2"))
    (folder / "README.md").write_text("---\nlibrary_name: peft\n---\n# x\n[More Information Needed]\n")
    assert hub_dry_run(folder, "me/pirate", tmp_path / "send3").missing[0].startswith("there is no card")


@pytest.mark.parametrize(
    "header, words",
    [
        ("a: [", r"isn't YAML \(line 2: .*mend that line"),
        ("\ttags: x", r"isn't YAML \(line 2: found character"),
        ("x: !!python/object:os.system y", r"isn't YAML \(line 2: could not determine a constructor"),
        ("x: " + "[" * 2000, "isn't YAML"),
        ("- lora", "is a list in YAML, and NAME: VALUE lines are wanted"),
        ("lora", "is a str in YAML"),
        ("1: x", "has the name 1, which YAML reads as a int: quote it"),
        ("tags: [lora, 1]", "says tags: 1, which YAML reads as a int, and the Hub takes text"),
        ("tags: [lora, null]", "says tags: None"),
        ("tags: [[lora]]", r"says tags: \['lora'\]"),
        ("tags: {a: 1}", r"says tags: \{'a': 1\}"),
        ("tags: [2024-01-01]", "which YAML reads as a date"),
        ("tags: ['']", "says tags: ''"),
        ("language: no", "says language: False, which YAML reads as a bool, .*quote it"),
        ("license: 1.0", "says license: 1.0"),
        ("datasets: 5", "says datasets: 5"),
        ("model-index: 3", "can't be read"),
        (None, "begins with --- and has no end"),
    ],
)
def test_a_header_that_the_hub_doesnt_read_is_refused_by_what_is_wrong_in_it(folder, tmp_path, header, words):
    text = "---\n# x\n" if header is None else f"---\n{header}\n---\n# x\n"
    (folder / "README.md").write_text(text, encoding="utf-8")
    with pytest.raises(ExportError, match=rf"(?s)the header of README\.md .*{words}"):
        hub_dry_run(folder, "me/pirate", tmp_path / "send")
    assert not (tmp_path / "send").exists()


@pytest.mark.parametrize("header", ["tags: null", "tags: lora", "tags: []", "license:", "my_own: 5", "# nothing"])
def test_a_header_that_says_little_is_completed(folder, tmp_path, header):
    for n, before in enumerate(("", "\ufeff", "\n\n")):
        (folder / "README.md").write_text(f"{before}---\n{header}\n---\n# x\n", encoding="utf-8")
        hub_dry_run(folder, "me/pirate", tmp_path / f"send{n}", licences=LICENCES)
        card = ModelCard((tmp_path / f"send{n}" / "README.md").read_text(encoding="utf-8"))
        assert card.data.license == "mit" and "---" not in card.text, "one header, and the text behind it"


# ------------------------------------------------------------------------------------------------ a stand-in of the Hub


class Hub:
    """As much of HfApi as is used: repositories whose branches and tags are commits, with their files."""

    def __init__(self, private: bool = True, there: bool = False):
        self.private, self.commits, self.refs, self.calls = private, {"": {}}, {"main": ""}, []
        self.tags: dict[str, str] = {}
        self.there = there

    def create_repo(self, repo_id, *, private, exist_ok):
        assert exist_ok
        self.calls.append("create_repo")
        if not self.there:
            self.private, self.there = private, True

    def repo_info(self, repo_id):
        return SimpleNamespace(private=self.private)

    def list_repo_refs(self, repo_id):
        return SimpleNamespace(tags=[SimpleNamespace(name=name) for name in self.tags])

    def create_branch(self, repo_id, *, branch, exist_ok):
        self.refs.setdefault(branch, self.refs["main"])

    def list_repo_files(self, repo_id, *, revision):
        return list(self.files(revision))

    def files(self, revision: str) -> dict[str, bytes]:
        return self.commits[self.tags.get(revision) or self.refs.get(revision, revision)]

    def create_commit(self, repo_id, operations, *, commit_message, revision):
        self.calls.append("create_commit")
        files = dict(self.files(revision))
        for one in operations:
            if hasattr(one, "path_or_fileobj"):
                files[one.path_in_repo] = Path(one.path_or_fileobj).read_bytes()
            elif hasattr(one, "src_revision"):
                files[one.path_in_repo] = self.files(one.src_revision)[one.src_path_in_repo]
            else:
                del files[one.path_in_repo]
        oid = f"c{len(self.commits)}"
        self.commits[oid] = files
        self.refs[revision] = oid
        return SimpleNamespace(oid=oid, commit_url=f"https://huggingface.co/{repo_id}/commit/{oid}")

    def create_tag(self, repo_id, *, tag, revision):
        self.tags[tag] = revision


def test_push_sends_those_files_in_one_commit_and_tags_it(folder, tmp_path):
    ready = hub_dry_run(folder, "me/pirate", tmp_path / "send", tag="v1", revision="trial")
    hub = Hub()
    assert push(ready, api=hub).endswith("/commit/c1")
    assert hub.calls == ["create_repo", "create_commit"] and hub.private
    assert hub.files("v1") == {file.name: (tmp_path / "send" / file.name).read_bytes() for file in ready.files}
    assert hub.files("main") == {} and hub.files("trial") == hub.files("v1")
    with pytest.raises(ExportError, match="has a tag v1 already"):
        push(ready, api=hub)


def test_nothing_is_sent_that_wasnt_looked_at_or_where_everybody_sees_it(folder, tmp_path):
    ready = hub_dry_run(folder, "me/pirate", tmp_path / "send")
    hub = Hub(private=False, there=True)
    with pytest.raises(ExportError, match="everybody sees it, and this was to be private"):
        push(ready, api=hub)
    (tmp_path / "send" / "README.md").write_text("another card")
    with pytest.raises(ExportError, match=r"README\.md isn't what the dry run showed any more"):
        push(ready, api=hub)
    assert "create_commit" not in hub.calls


def test_rolling_back_makes_main_what_the_tag_was(folder, tmp_path):
    hub = Hub()
    push(hub_dry_run(folder, "me/pirate", tmp_path / "one", tag="v1"), api=hub)
    first = hub.files("main")
    (folder / "notes.txt").write_text("new")
    settings(folder, lora_alpha=1)
    push(hub_dry_run(folder, "me/pirate", tmp_path / "two", tag="v2", also=["notes.txt"]), api=hub)
    assert hub.files("main") != first and "notes.txt" in hub.files("main")
    assert roll_back("me/pirate", "v1", api=hub).endswith("/commit/c3")
    assert hub.files("main") == first and hub.files("v2")["notes.txt"] == b"new", "nothing is lost"
    with pytest.raises(ExportError, match="no tag 'v0', only v1, v2"):
        roll_back("me/pirate", "v0", api=hub)
