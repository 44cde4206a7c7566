# Astro Runtime 3.1 (Apache Airflow 3.1.8) on Python 3.12. Its build steps install packages.txt and requirements.txt
# on top and copy the project, so a change to them needs no line here. airflow-ai-sdk does not run on Airflow 3.2 and later.
FROM astrocrpublic.azurecr.io/runtime:3.1-21-python-3.12

# Astro Runtime has installed requirements.txt by now, with the newest versions of its dependencies. This step installs the
# tested versions instead.
USER root
RUN pip install --no-cache-dir --root-user-action=ignore --constraint constraints.txt --requirement requirements.txt
USER astro

# A run's id becomes the name of a log folder: "." or ".." would end the scheduler of Airflow 3.1, and 250 characters are too
# long for a file system.
ENV AIRFLOW__SCHEDULER__ALLOWED_RUN_ID_PATTERN='^[A-Za-z0-9_][A-Za-z0-9_.~:+-]{0,199}\Z'

# A Celery worker imports these once, and the task processes that it forks share them: a task with a model call takes a
# quarter of the CPU and half the memory (docs/growing.md). No other executor reads this.
ENV AIRFLOW__CELERY__EXTRA_CELERY_CONFIG='{"imports": ["pydantic_ai.models.openai", "airflow.providers.amazon.aws.fs.s3", "lance_namespace", "pandas"]}'
