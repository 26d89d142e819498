"""A pretend identity provider: OpenID Connect at Keycloak's paths, with one account, in a process of its own."""
