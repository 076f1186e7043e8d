"""What ties the library to Airflow: form, settings of a run, context of a step, callbacks."""
