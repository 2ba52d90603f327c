# Sentences of the console. A key has the same values in each language.

## Frame

nav-overview = 概要
nav-devices = デバイス
nav-enrollments = 登録グループ
nav-import = インポート
nav-pages = ページ
nav-skip = 本文へ移動
role-operator = オペレーター
role-viewer = 閲覧者
footer-server = {$now} 現在 · {$host} の certdist {$version}、起動 {$started} · {$database}
live-stale = サーバーが応答しません。下の数値は古いものです。
live-ended = セッションが終了しました。下の数値は古いものです。
go-to-overview = 概要へ
page-not-found-title = ページがありません
page-not-found = このアドレスにページはありません。{$link}
form-expired = フォームの有効期限が切れました
form-expired-text = このフォームは現在のセッションのものではないため、何も変更されていません。ページを開き直して、もう一度操作してください。
signed-out = サインアウトされています
signed-out-text = フォームが届く前にセッションが終了していたため、何も変更されていません。サインインして、もう一度操作してください。
operators-only = この操作はオペレーターだけができます
operators-only-text = 閲覧者としてサインインしています。すべてを見られますが、変更はできません。変更するには、設定に {$role} が必要です。
database-failed = データベースのエラー
database-failed-text = 何も変更されていません。データベースからの報告：
database-failed-advice = 続く場合は、ディスクに空きがあるか、ほかのプロセスがファイルを占有していないかを確認してください。
console-off = サインインできるユーザーがまだいません
console-off-text = ユーザーが設定されていないため、コンソールは無効です。ヘルスとメトリクスは {$health} と {$metrics} にあります。
console-off-hash = 有効にするには、まずパスワードのハッシュを作ります。
console-off-config = それを {$file} に書き、certdist を再読み込みします（{$command} または SIGHUP）。

## Signing in

sign-in = サインイン
sign-out = サインアウト
sign-in-name = 名前
sign-in-password = パスワード
sign-in-hint = ユーザーは certdist.toml で設定します。パスワードを忘れた場合は {$command} で新しいハッシュを作ってください。
not-signed-in = サインインできませんでした
sign-in-form-expired = フォームの有効期限が切れたか、Cookie が無効になっています。もう一度お試しください。
sign-in-wrong = 名前またはパスワードが違います。
sign-in-too-often = 試行回数が多すぎます。{$seconds} 秒後にもう一度試すか、以前サインインしたことのあるブラウザーを使ってください。
