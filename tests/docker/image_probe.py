"""Run on the files and in the environment of a container: prints as JSON what Airflow and the library make of them.

Standard input: a JSON list of commands, each a list of words.
"""

import json
import os
import sys
from pathlib import Path


def unknown_options() -> list[str]:
    """The AIRFLOW__* variables that are no option of this Airflow or of one of its providers."""
    from airflow.configuration import conf
    from airflow.utils.providers_configuration_loader import providers_configuration_loaded

    known = providers_configuration_loaded(lambda: dict(conf.configuration_description))()
    names = [name.lower().split("__")[1:] for name in os.environ if name.startswith("AIRFLOW__")]
    return [
        f"{section}.{option}" for section, option in names if option not in known.get(section, {}).get("options", {})
    ]


def refused(commands: list[list[str]]) -> list[list[str]]:
    """The commands that Airflow's command line does not take."""
    from airflow.cli import cli_parser

    parser, wrong = cli_parser.get_parser(), []
    for command in commands:
        try:
            parser.parse_args(command[1:])
        except SystemExit:
            wrong.append(command)
    return wrong


def job_types() -> list[str]:
    """What `airflow jobs check --job-type` can find."""
    from airflow.jobs.dag_processor_job_runner import DagProcessorJobRunner
    from airflow.jobs.scheduler_job_runner import SchedulerJobRunner
    from airflow.jobs.triggerer_job_runner import TriggererJobRunner

    return [runner.job_type for runner in (SchedulerJobRunner, DagProcessorJobRunner, TriggererJobRunner)]


def main() -> None:
    from airflow.dag_processing.dagbag import BundleDagBag

    import cxr_ml
    from cxr_ml import settings

    folder = Path(os.environ["AIRFLOW__CORE__DAGS_FOLDER"])
    bag = BundleDagBag(folder, bundle_path=folder, bundle_name="dags-folder")  # as the dag-processor does
    tasks = [task for dag in bag.dags.values() for task in dag.tasks]
    seen = {
        "library": cxr_ml.__file__,
        "expectations": sorted(path.name for path in settings.load().validation.expectations.iterdir()),
        "architectures": settings.load().training.architectures,
        "dags": sorted(bag.dags),
        "import_errors": bag.import_errors,
        "queues": sorted({task.queue for task in tasks}),
        "longest": max(task.execution_timeout.total_seconds() for task in tasks if task.execution_timeout)
        if tasks
        else 0,
        "unknown_options": unknown_options(),
        "options": sum(name.startswith("AIRFLOW__") for name in os.environ),
        "refused": refused(json.load(sys.stdin)),
        "job_types": job_types(),
    }
    print("PROBE " + json.dumps(seen))


if __name__ == "__main__":
    main()
