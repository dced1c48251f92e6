// Package config reads certsync's configuration file: it parses the YAML, fills in the defaults, and checks the shape
// of every value, so that the rest of the program can rely on what it is given. All that is wrong is told at once,
// each with its line of the file. It knows nothing of what the values are used for: it dials nothing, and opens no
// file but the configuration and, where asked to, the secrets that the configuration names. Use it in the commands,
// which hand plain values on to the adapters.
package config
