"""The chest X-ray console: pages about models, data and runs inside Airflow's UI."""
