# Astro Runtime 3.1 (Apache Airflow 3.1.8) on Python 3.12. Its build steps install packages.txt and requirements.txt
# on top, so that a change of either needs no line here. airflow-ai-sdk does not run on Airflow 3.2 and later.
FROM astrocrpublic.azurecr.io/runtime:3.1-17-python-3.12
