"""`cxr-ml`: each stage of the retraining as a command, without Airflow."""

import typer

from cxr_ml.commands import dataset, models, quarantine
from cxr_ml.commands.candidates import evaluate, train
from cxr_ml.commands.drops import demo_data, ingest, measure, validate
from cxr_ml.commands.prediction import predict
from cxr_ml.commands.release import gate, promote, report, rollback
from cxr_ml.commands.retraining import retrain
from cxr_ml.commands.settings import settings

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False)
app.add_typer(dataset.app, name="dataset")
app.add_typer(models.app, name="models")
app.add_typer(quarantine.app, name="quarantine")
for command in (
    ingest,
    measure,
    validate,
    train,
    evaluate,
    gate,
    promote,
    rollback,
    report,
    predict,
    retrain,
    settings,
):
    app.command()(command)
app.command("demo-data")(demo_data)
