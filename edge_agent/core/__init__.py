"""What every part uses: structures, errors, settings, events, files and logs."""
