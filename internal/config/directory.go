package config

// The directories that have a name. ZeroSSL has no staging.
const (
	letsEncrypt        = "https://acme-v02.api.letsencrypt.org/directory"
	letsEncryptStaging = "https://acme-staging-v02.api.letsencrypt.org/directory"
	zeroSSL            = "https://acme.zerossl.com/v2/DV90"
	google             = "https://dv.acme-v02.api.pki.goog/directory"
	googleStaging      = "https://dv.acme-v02.test-api.pki.goog/directory"
)

// DirectoryURL is the URL of a directory that is given by name (letsencrypt, letsencrypt-staging, zerossl, google) or
// as a URL, which is given back as it is.
func DirectoryURL(directory string) string {
	switch directory {
	case "letsencrypt":
		return letsEncrypt
	case "letsencrypt-staging":
		return letsEncryptStaging
	case "zerossl":
		return zeroSSL
	case "google":
		return google
	}
	return directory
}

// StagingURL is the URL of the staging directory of the CA that directory belongs to, where one is known. That of a
// staging directory is itself.
func StagingURL(directory string) (string, bool) {
	switch DirectoryURL(directory) {
	case letsEncrypt, letsEncryptStaging:
		return letsEncryptStaging, true
	case google, googleStaging:
		return googleStaging, true
	}
	return "", false
}

// needsEAB tells that the CA makes accounts only with an external account binding.
func needsEAB(url string) bool { return url == zeroSSL || url == google || url == googleStaging }

// isProduction tells that a dry run must not be made there: it would count against the CA's rate limits.
func isProduction(url string) bool { return url == letsEncrypt || url == zeroSSL || url == google }
