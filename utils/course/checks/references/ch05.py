"""The answers to chapter 5's exercises, cell by cell as the lesson solves them.

Generated from lessons/05_data.md by `make notebooks`: edit the lesson, not this file.
"""

# fmt: off

# -------- dolly_record
def dolly_record(record):
    if not (record.get("response") or "").strip():
        raise ValueError(f"no response in a record with the fields {', '.join(record)}")
    return {
        "instruction": record["instruction"],
        "input": record["context"],
        "output": record["response"],
    }


# -------- tokenize_batch
def tokenize_batch(batch, template):
    prompts, conversations = [], []
    for instruction, extra, output in zip(batch["instruction"], batch["input"], batch["output"]):
        user = {"role": "user", "content": f"{instruction} {extra}" if extra else instruction}
        prompts.append([user])
        conversations.append([user, {"role": "assistant", "content": output}])
    return {
        "input_ids": template(conversations),
        "prompt_ids": template(prompts, add_generation_prompt=True),
    }


# -------- conversation_labels
def conversation_labels(turns):
    labels = []
    for role, ids in turns:
        if role == "assistant":
            labels += [-100, *ids[1:]]
        else:
            labels += [-100] * len(ids)
    return labels


# -------- leaked_prompts
def leaked_prompts(train, test):
    def prompt(record):
        return " ".join(f"{record['instruction']} {record['input']}".lower().split())

    known = {prompt(record) for record in train}
    return [place for place, record in enumerate(test) if prompt(record) in known]


# -------- packed_row
def packed_row(documents):
    input_ids, labels, position_ids = [], [], []
    for document in documents:
        input_ids += document
        labels += [-100, *document[1:]]
        position_ids += range(len(document))
    return {"input_ids": input_ids, "labels": labels, "position_ids": position_ids}
