"""The paths of the project."""

from __future__ import annotations

from django.urls import path

from django_app.mails import views

urlpatterns = [path("users/<int:user>/notices", views.notices), path("health", views.health)]
