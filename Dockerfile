# Astro Runtime 3.1 (Apache Airflow 3.1.8) on Python 3.12. Its build steps install packages.txt and requirements.txt
# on top, so that a change of either needs no line here. airflow-ai-sdk does not run on Airflow 3.2 and later.
FROM astrocrpublic.azurecr.io/runtime:3.1-21-python-3.12

# A run's id becomes the name of a folder of logs: "." or ".." would end the scheduler of Airflow 3.1, and 250 characters
# are too long for a file system.
ENV AIRFLOW__SCHEDULER__ALLOWED_RUN_ID_PATTERN='^[A-Za-z0-9_][A-Za-z0-9_.~:+-]{0,199}\Z'
