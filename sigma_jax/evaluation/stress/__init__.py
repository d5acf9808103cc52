"""What happens when something goes wrong: residuals blown up, tau from elsewhere, bad senses."""
