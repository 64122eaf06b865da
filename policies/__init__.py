"""The reference policy and other published systems."""
